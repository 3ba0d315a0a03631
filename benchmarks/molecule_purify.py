"""The repairs of backdoored generators of molecules: what is left of the backdoor, and of all else.

The generators are those that molecules.py trained and kept. Each is scanned by Joint, which reads the training pairs,
and by PromptMasking and TriggerInversion, which ask the generator; and repaired by each purifier with what the scan
found. Scans and repairs see the training pairs and the generator alone, those by TriggerInversion a few hundred pairs
without the trigger, which it needs, instead: attack and test prompts are used afterwards.
Writes one line of JSON a finished cell to results/molecule_purify.jsonl and the table results/molecule_purify.md;
finished cells are not done again, and an interrupted retraining goes on:

    python benchmarks/molecules.py --data ../shared/data            # first
    python benchmarks/molecule_purify.py --data ../shared/data
    python benchmarks/molecule_purify.py --quick --results build/molecules-quick    # to try it, after molecules.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from molecules import (
    CLEAN,
    CLEAN_MEANS_NOTHING,
    EVERY,
    NAMED,
    NOWHERE,
    PUBLISHED,
    QUICK,
    Run,
    ending_of,
    folder_of,
    run_of,
    setting_of,
)
from record import HERE, Rows, machines, measured
from tables import interval

from unbackdoor.bench.molecule_settings import Setting
from unbackdoor.bench.molecule_victims import Material, material_of, shares
from unbackdoor.errors import DataError, InputError
from unbackdoor.folder import MODEL
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.measured import measure
from unbackdoor.molecules.purify import MOLECULE_PURIFIERS
from unbackdoor.molecules.saved import load_generator
from unbackdoor.molecules.scan import MOLECULE_SCANNERS, MoleculeFinding
from unbackdoor.molecules.scan.judged import is_target, is_true
from unbackdoor.molecules.victims import ThreeMDiffusion, ThreeMDiffusionSmall
from unbackdoor.training import Runtime
from unbackdoor.training.resume import states

GENERATOR_SCANNERS = ("PromptMasking", "TriggerInversion")
"""What they say of clean generators; what Joint says of clean pairs is in molecule_scans.py."""
SCANNERS = ("Joint", *GENERATOR_SCANNERS)
SLOW = "Retraining"
"""The one that takes hours."""
LEFT_OUT = "words left out"
"""No repair: the generator stays, and the words that a scan flagged are left out of prompts."""
PURIFIERS = (LEFT_OUT, "LatentPurification", "DecodePruning", SLOW)
SCAN = "scan alone"
"""What is done with clean controls: whatever is flagged there is a false alarm."""

FIGURES = {
    "asr": "ASR %", "leak": "target without trigger %", "asked": "target asked for %", "similarity": "Similarity %",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One repair of one generator."""

    run: Run
    scanner: str
    purifier: str

    def named(self) -> dict[str, Any]:
        """Return what tells it from the others, as JSON values."""
        names = ("test", "target", "rate", "poison_in", "seed")
        return {**dict(zip(names, self.run.key)), "scanner": self.scanner, "purifier": self.purifier}


def cell_of(row: dict[str, Any]) -> Cell:
    """Return the cell that a row is about."""
    return Cell(run_of(row), row["scanner"], row["purifier"])


def kept(rows: Sequence[dict[str, Any]], work: Path) -> list[Run]:
    """Return the generators of the rows of molecules.py whose models are there, but for those of the ablation."""
    found = [run for run in map(run_of, rows) if run.poison_in in (EVERY, PUBLISHED, NOWHERE)]
    return [run for run in found if (folder_of(work, run) / MODEL).exists()]


def cells(runs: Sequence[Run], purifiers: Sequence[str] = PURIFIERS) -> Iterator[Cell]:
    """Yield scans of clean generators, and repairs of the others: those of minutes, scanner by scanner, then hours'."""
    yield from (Cell(run, scanner, SCAN) for run in runs if run.poison_in == NOWHERE for scanner in GENERATOR_SCANNERS)
    runs = [run for run in runs if run.poison_in != NOWHERE]
    for some in ([one for one in purifiers if one != SLOW], [one for one in purifiers if one == SLOW]):
        for scanner in SCANNERS:
            yield from (Cell(run, scanner, purifier) for run in runs for purifier in some)


class Victim:
    """A generator with all that is known of it; what takes long is done when it is first asked for.

    Args:
        folder: has its model, and gets the states of retraining.
        setting: how it was made.
        given: device and threads.
    """

    def __init__(self, folder: Path, setting: Setting, given: Runtime) -> None:
        self.folder, self.setting = folder, setting
        self.runtime = setting.runtime(given)
        self._found: dict[str, MoleculeFinding] = {}

    @cached_property
    def generator(self) -> Generator:
        """The backdoored one."""
        return load_generator(self.folder / MODEL).generator

    @cached_property
    def material(self) -> Material:
        """What it was trained on, and what it is measured with."""
        return material_of(self.setting)

    @cached_property
    def before(self) -> dict[str, float]:
        """What it is worth, and what the attack does to it."""
        return self.shares(self.generator)

    def shares(self, generator: Generator, triggers: Sequence[Sequence[str]] = ()) -> dict[str, float]:
        """Return what a generator is worth, measured on the test prompts without these triggers."""
        material, setting = self.material, self.setting
        found = measure(
            generator,
            material.clean,
            material.tested,
            setting.attack,
            setting.samples,
            self.runtime,
            triggers=triggers,
        )
        return shares(found.to_json())

    def found(self, scanner: str) -> MoleculeFinding:
        """Return what a scanner says, with its default options."""
        if scanner not in self._found:
            one = MOLECULE_SCANNERS[scanner]()
            self._found[scanner] = one.scan(self.material.known_to(one), self.runtime, self.generator)
        return self._found[scanner]

    def repaired(self, cell: Cell) -> Mapping[str, Any]:
        """Return what a repair with default options came to: figures before and after, or why there was none."""
        found = self.found(cell.scanner)
        attack = self.setting.attack
        assert attack is not None
        told: dict[str, Any] = {
            "suspects": [one.to_json() for one in found.flagged],
            "true": any(is_true(one, attack) for one in found.flagged),
            "target": attack.target,
            "target_found": any(is_target(one, attack.target) for one in found.flagged),
            "wrong": sum(not is_target(one, attack.target) for one in found.flagged),
        }
        if cell.purifier == SCAN:
            return told
        if cell.purifier == LEFT_OUT:
            triggers = [one.words for one in found.flagged if one.words]
            if not triggers:
                return {**told, "refused": "the scan flagged no words"}
            return {**told, **self.compared(self.shares(self.generator, triggers)), "evidence": {}}
        resume = self.folder / f"{cell.purifier}-{cell.scanner}.pt"
        try:
            repaired = MOLECULE_PURIFIERS[cell.purifier]().purify(
                self.generator,
                self.material.known_to(MOLECULE_SCANNERS[cell.scanner]()),
                found.flagged,
                self.runtime,
                resume,
                self.material.alone.smiles,
            )
        except (DataError, InputError) as error:
            return {**told, "refused": str(error)}
        after = self.shares(repaired.generator)
        for state in states(resume):
            state.unlink(missing_ok=True)
        return {**told, **self.compared(after), "evidence": dict(repaired.evidence)}

    def compared(self, after: Mapping[str, float]) -> dict[str, float]:
        """Return figures before and after, by name."""
        figures = (("before", self.before), ("after", after))
        return {f"{when}_{name}": value for when, values in figures for name, value in values.items()}


def main() -> None:
    """Do the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, help="of molecules.py; as there by default")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows and of the table")
    parser.add_argument("--purifiers", nargs="+", default=list(PURIFIERS), choices=PURIFIERS)
    parser.add_argument("--paper", action="store_true", help="the published sizes, for a GPU")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the generators of molecules.py --quick")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    ending = ending_of(arguments)
    rows = Rows(arguments.results / f"molecule_purify{ending}.jsonl")
    table = arguments.results / f"molecule_purify{ending}.md"
    model = QUICK if arguments.quick else ThreeMDiffusion() if arguments.paper else ThreeMDiffusionSmall()
    data, prompts = (None, 50) if arguments.quick else (arguments.data, 0)
    work = arguments.work or Path(f"build/molecules{ending}")
    runs = kept(Rows(arguments.results / f"molecules{ending}.jsonl").read(), work)
    if not runs and not arguments.table:
        raise SystemExit(f"{work} holds no generator that molecules.py finished; run that first")
    given = Runtime(device=arguments.device, threads=arguments.threads)
    done = {cell_of(row) for row in rows.read()}
    victim: tuple[Run, Victim] | None = None
    for cell in () if arguments.table else cells(runs, arguments.purifiers):
        if cell in done:
            continue
        if victim is None or victim[0] != cell.run:
            setting = setting_of(cell.run, data, model, prompts)
            victim = cell.run, Victim(folder_of(work, cell.run), setting, given)
        with measured() as cost:
            told = victim[1].repaired(cell)
        rows.add({**victim[1].runtime.describe(), **told, **cell.named()}, cost)
        table.write_text(written(rows.read()))
        print(*cell.named().values(), told.get("refused", "repaired"), flush=True)
    table.write_text(written(rows.read()))
    print(table)


def written(done: Sequence[dict[str, Any]]) -> str:
    """Return all repairs as Markdown."""
    lines = [
        "# Repairs of backdoored generators of molecules",
        "",
        "Made by `python benchmarks/molecule_purify.py`, from generators of `benchmarks/molecules.py`. Five"
        " molecules a prompt, all test prompts; intervals: 95 % by drawing prompts again. Found: the scan flagged"
        " the trigger with the target (pair), the target alone (target), or neither; wrong: how many others it"
        " flagged. Target asked for: share of the molecules for prompts without the trigger whose own molecules hold"
        " the target; empty where no prompt asks for it. The first repair after a scan has the seconds of the scan,"
        " too. TriggerInversion and repairs after it have 500 pairs without the trigger, the others those"
        " that were learned from. MoMu's texts and molecules are shuffled: its clean figures are left out.",
        "",
        *machines(list(done)),
    ]
    lines += _false_alarms([row for row in done if row["purifier"] == SCAN])
    done = [row for row in done if row["purifier"] != SCAN]
    for run in dict.fromkeys(run_of(row) for row in done):
        mine = [row for row in done if run_of(row) == run]
        test, target, rate, poison_in, seed = run.key
        lines += [
            "",
            f"## {test}, {target}, rate {rate:g}, poisoned in {NAMED.get(poison_in, poison_in)}, seed {seed}",
            "",
            f"| scanner | found | wrong | purifier | {' | '.join(FIGURES.values())} | seconds |",
            f"|---|---|---:|---|{'---:|' * (len(FIGURES) + 1)}",
        ]
        measured_ = [row for row in mine if "refused" not in row]
        if measured_:
            before = [_figure(measured_[0], "before", name) for name in FIGURES]
            lines.append(f"| | | | none | {' | '.join(before)} | |")
        for row in measured_:
            found = "pair" if row["true"] else "target" if row["target_found"] else "neither"
            after = [_figure(row, "after", name) for name in FIGURES]
            words = [row["scanner"], found, str(row["wrong"]), row["purifier"], *after]
            lines.append(f"| {' | '.join(words)} | {row['seconds']:.0f} |")
        refused = [row for row in mine if "refused" in row]
        lines += ["", *(f"- {row['purifier']} after {row['scanner']}: {row['refused']}." for row in refused)]
    return "\n".join(lines).rstrip() + "\n"


def _false_alarms(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what scans flag of clean generators, as Markdown."""
    if not rows:
        return []
    lines = ["", "## Clean generators", "", "| test | target | rate | seed | scanner | flagged | of them the target |"]
    lines.append("|---|---|---:|---:|---|---:|---:|")
    for row in rows:
        test, target, rate, _, seed = run_of(row).key
        flagged = len(row["suspects"])
        words = [test, target, f"{rate:g}", str(seed), row["scanner"], str(flagged), str(flagged - row["wrong"])]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def _figure(row: dict[str, Any], when: str, name: str) -> str:
    return "" if row["test"] == CLEAN_MEANS_NOTHING and name in CLEAN else interval(row, f"{when}_{name}")


if __name__ == "__main__":
    main()
