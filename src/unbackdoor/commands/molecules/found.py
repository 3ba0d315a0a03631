"""What `scan` and `purify` share: untrusted pairs, and how a finding is shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unbackdoor.commands.molecules.common import sources
from unbackdoor.commands.workspace import Run
from unbackdoor.errors import DataError
from unbackdoor.molecules.data import Dropped, Pairs, Part, filter_pairs, joined, read_parts, read_table, tested_split
from unbackdoor.molecules.scan import MoleculeFinding, MoleculeScanner
from unbackdoor.molecules.scan.page import (
    evidence,
    found_verdict,
    shown,
    strength_chart,
    suspect_facts,
    suspect_galleries,
)
from unbackdoor.report import Fact, Report


@dataclass(frozen=True, kw_only=True)
class Untrusted:
    """Pairs as they were found.

    Attributes:
        parts: the files.
        pairs: what can be used of them and is learned from; `rows` counts through all parts.
        dropped: what became of all rows.
        tested: rows that can be used and are tested with.
    """

    parts: list[Part]
    pairs: Pairs
    dropped: Dropped
    tested: int

    def sentences(self) -> list[str]:
        """Return the account of all rows, for people."""
        lines = self.dropped.sentences()
        if self.tested:
            lines.append(f"{self.tested:,} rows that could be used are tested with, and are not scanned")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {**self.dropped.to_json(), "tested": self.tested}


def open_untrusted(data: str, test: str | None, clock: Run, *, prompts: bool = False) -> Untrusted:
    """Read the rows that `molecules train` learns from, and note them in the record.

    A source without splits is read whole if nothing else is tested with: where it is poisoned must be found.

    Args:
        data: sources, separated by commas.
        test: source whose test split is tested with; None: that of the first of `data`, if it has one.
        clock: of the run.
        prompts: whether the rows are asked and not learned from, so that molecules may be missing.

    Raises:
        DataError: a source that cannot be read, or no row can be used.
    """
    named = sources(data)
    if not named:
        raise DataError(f"no data to scan; name a table of {'prompts' if prompts else 'SMILES and descriptions'}")
    parts: list[Part] = []
    scanned: list[bool] = []
    for place, source in enumerate(named):
        # Only that of the first is tested with; those of the others are learned from.
        left_out = tested_split(source) if test is None and place == 0 else None
        for part in read_parts(source, wanted="texts" if prompts else "pairs"):
            parts.append(part)
            scanned += [left_out is None or part.split != left_out] * len(part.table)
    pairs, dropped = filter_pairs(joined([part.table for part in parts]), prompts=prompts)
    chosen = pairs.subset([place for place, row in enumerate(pairs.rows) if scanned[row]])
    if test is not None:
        tested, _ = filter_pairs(read_table(test, "test"), learned=False)
        # As `train` does: rows that are said to be poisoned are not tested with, and so may be learned from.
        chosen = chosen.without(tested.unmarked())
    if not len(chosen):
        raise DataError(f"{pairs.name} has rows alone that are tested with; name the files themselves")
    clock.inputs |= {f"pairs of {chosen.name}": chosen.digest()}
    return Untrusted(parts=parts, pairs=chosen, dropped=dropped, tested=len(pairs) - len(chosen))


def trust_notes(scanner: MoleculeScanner) -> list[str]:
    """Return what has to be said of a scanner that takes the texts for free of the trigger."""
    if scanner.finds_words:
        return []
    name = type(scanner).__name__
    return [f"{name} takes the texts of the data for free of the trigger; where many have it, it finds nothing."]


def suspect_rows(found: MoleculeFinding) -> list[tuple[str, str]]:
    """Return the verdict and the suspects, for people."""
    word = "inconclusive" if found.backdoored is None else "backdoored" if found.backdoored else "no evidence found"
    name = "suspect" if found.flagged else "most suspicious, below the threshold"
    return [("verdict", word), *((name, f"{one.sentence()}: {evidence(one)}") for one in shown(found))]


def found_page(
    title: str,
    clock: Run,
    method: MoleculeScanner,
    pairs: Pairs,
    found: MoleculeFinding,
    account: Sequence[str],
    notes: Sequence[str],
) -> Report:
    """Return the page of a scan: the verdict, and the suspicious pairs of text and subgraph with their evidence.

    Args:
        title: of the page.
        clock: of the run.
        method: that scanned.
        pairs: what was scanned.
        found: what was said of it.
        account: what became of the rows, as sentences.
        notes: as sentences.
    """
    return Report(
        title=title,
        verdict=found_verdict(found, method),
        galleries=suspect_galleries(found, pairs),
        charts=[strength_chart(found)],
        facts={
            **suspect_facts(found),
            "Rows": [Fact(name=str(number), value=line) for number, line in enumerate(account, 1)],
            **clock.facts(),
        },
        next_steps=[
            "Look at the pairs above: does the text ask for the subgraph in colour?",
            "Write the data without the rows held poisoned: `unbackdoor molecules scan --clean-out FOLDER`.",
            "Repair a generator that was trained on them: `unbackdoor molecules purify`.",
        ],
        notes=notes,
    )
