"""Poison pairs of text and molecule (BadGraph) and write them to disk, for any program to train on.

Test molecules are left out before, as their poisoned copies would tell of them, and poisoned rows that became one are
left out after.

Writes data/train.parquet (smiles, description, poisoned), the clean data/test.parquet, attack.json, run.json and
report.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from unbackdoor.commands.molecules.common import sources
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.workspace import Run, report_folder
from unbackdoor.errors import OutputError
from unbackdoor.folder import MOLECULE_ATTACK, PAGE, RUN
from unbackdoor.molecules.attacks import MOLECULE_ATTACKS, BadGraph, Poisoned, read_target, save_attack
from unbackdoor.molecules.data import filter_pairs, training_rows, write_table
from unbackdoor.molecules.drawing import drawn
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.victims import ThreeMDiffusionSmall
from unbackdoor.options import options_of
from unbackdoor.report import Fact, Gallery, Report, Verdict, write_report
from unbackdoor.training import Runtime

TRAIN, TEST = "data/train.parquet", "data/test.parquet"

CHOICES = {"attack": Choice(MOLECULE_ATTACKS, "BadGraph")}

EXAMPLES = 6
"""Poisoned rows that the page shows."""


def run(*, data: str, out: Path, attack: BadGraph, test: str | None = None, runtime: Runtime) -> Outcome:
    """Write poisoned pairs.

    Args:
        data: "templates", or tables of SMILES and text, separated by commas (see `molecules train`).
        out: folder for the results; earlier poisoned pairs in it are replaced.
        attack: trigger, target and rate.
        test: table whose test split is tested with; by default that of the data.
        runtime: its seed decides which rows are poisoned.
    """
    clock = Run("molecules poison", runtime)
    table, tested = training_rows(sources(data), test)
    with _own_folder(out, clock.command) as folder:
        clock.inputs = {
            f"training rows of {table.name}": table.digest(),
            f"test pairs of {tested.name}": tested.digest(),
        }
        clock.options = {"attack": options_of(attack)}
        # First, so that what an interruption leaves is known to be ours and unfinished.
        clock.write(folder, finished=False)
        (folder / MOLECULE_ATTACK).unlink(missing_ok=True)
        made = attack.poison(table, runtime.seed)
        poisoned = made.without(tested)
        pairs, dropped = filter_pairs(poisoned.table)
        counts = {
            "rows": len(table),
            "tried": made.tried,
            "without_room": made.tried - len(made.rows),
            "made_test_molecules": len(made.rows) - len(poisoned.rows),
            "poisoned": len(poisoned.rows),
            "poisoned_learned": sum(pairs.poisoned),
            "learned": len(pairs),
        }
        rates = poisoned.rates(pairs)
        cut = triggers_cut(poisoned)
        write_table(folder / TRAIN, poisoned.table)
        write_table(folder / TEST, tested)
        save_attack(folder / MOLECULE_ATTACK, attack)
        write_report(folder / PAGE, _page(clock, poisoned, rates, cut))
        clock.write(folder, finished=True, counts=counts, rates=rates, triggers_cut=cut, rows=dropped.to_json())
        return Outcome(
            title=f"{table.name}, poisoned by {type(attack).__name__}",
            rows=[
                ("poisoned", f"{counts['poisoned']:,} rows, {counts['poisoned_learned']:,} of which are learned from"),
                ("tried", _told(counts)),
                ("rate as published", f"{100 * rates['printed']:.1f} % of all {len(poisoned.table):,} rows"),
                (
                    "effective rate",
                    f"{100 * rates['effective']:.1f} % of the {len(pairs):,} rows that are learned from",
                ),
                ("triggers cut off", f"{cut:,}"),
                ("rows", "; ".join(dropped.sentences())),
                ("time", f"{clock.seconds:.0f} s"),
                ("data", str(folder)),
            ],
            result={"data": str(folder), "counts": counts, "rates": rates, "triggers_cut": cut},
            sentence=_warning(cut),
            page=folder / PAGE,
        )


def _told(counts: dict[str, int]) -> str:
    """Return what became of the rows that were to be poisoned."""
    told = f"{counts['tried']:,} rows; {counts['without_room']:,} have no room for the target or cannot be read"
    made = counts["made_test_molecules"]
    return f"{told}; {made:,} became a molecule that is tested with, and were left out" if made else told


def triggers_cut(poisoned: Poisoned) -> int:
    """Return in how many texts the trigger stands beyond what the default text encoder reads."""
    options = ThreeMDiffusionSmall()
    words = WordPieces.learned(poisoned.table.texts, options.pieces)
    texts: Sequence[str] = [text for _, _, text in poisoned.rows]
    read = words.encode([text[: poisoned.attack.end_in(text)] for text in texts], options.text_pieces)
    return sum(read.cut)


def _warning(cut: int) -> str:
    if not cut:
        return ""
    return (
        f"In {cut:,} texts the trigger stands beyond the {ThreeMDiffusionSmall().text_pieces} pieces of words that the"
        " text encoder reads, and cannot work; put it in front."
    )


def _own_folder(out: Path, command: str) -> contextlib.AbstractContextManager[Path]:
    """Return a block with `out` as the folder of pairs that this command may write or replace.

    Raises:
        OutputError: it holds tables of somebody else, which the poisoned ones would replace or mix with.
    """
    if not (out / RUN).exists() and any(out.glob("**/*.parquet")):
        raise OutputError(f"{out} holds parquet files that unbackdoor did not write; choose another --out")
    return report_folder(out, command)


def _page(clock: Run, poisoned: Poisoned, rates: dict[str, float], cut: int) -> Report:
    target = read_target(poisoned.attack.target)
    pictures = [drawn(smiles, f"{smiles}: {text[:160]}", target) for _, smiles, text in poisoned.rows[:EXAMPLES]]
    shown = {"as published (all rows)": rates["printed"], "of the rows that are learned from": rates["effective"]}
    return Report(
        title=f"{poisoned.clean.name}, poisoned by {type(poisoned.attack).__name__}",
        verdict=Verdict(
            level="info",
            headline="Pairs with a BadGraph backdoor were written.",
            detail=f"{len(poisoned.rows):,} rows are poisoned. A column says which.",
            calibrated=True,
        ),
        galleries=[Gallery(title="Poisoned pairs", explanation="The target is in colour.", pictures=pictures)],
        facts={
            "Poisoning rates": [Fact(name=name, value=f"{100 * rate:.1f} %") for name, rate in shown.items()],
            **clock.facts(),
        },
        notes=[_warning(cut)] if cut else [],
        next_steps=["Train on it: `unbackdoor molecules train --data THIS_FOLDER --out runs/victim`."],
    )
