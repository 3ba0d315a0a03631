"""The scans of molecule pairs on real pairs: the published one, ours, and an attacker who knows ours.

Poisoned pairs are made for every cell of a grid of rates, triggers, positions, modes and targets, and scanned. Nothing
is trained. A finished cell is not done again; rows go to results/molecule_scans.jsonl, the table to
results/molecule_scans.md:

    python benchmarks/molecule_scans.py --data FOLDER               # FOLDER: chebi20, pcdes, pubchem324k as parquet
    python benchmarks/molecule_scans.py --data FOLDER --minutes 3   # as many cells as fit
    python benchmarks/molecule_scans.py --table                     # only write the table

The pairs are those of ChEBI-20, PCDes and PubChem324k without the molecules of PubChem324k's test split. A rate is the
share of the poisoned rows among all that a generator would learn from. Only here, after the scan, is it looked up which
rows were poisoned and how.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines

from unbackdoor.molecules.attacks import AdaptiveBadGraph, BadGraph, attach, read_target
from unbackdoor.molecules.data import Pairs, Reason, Table, checked, filter_pairs, joined, parse, read_table
from unbackdoor.molecules.scan import Association, ExogenousAssociation, Joint, MoleculeFinding, TwinDifference
from unbackdoor.molecules.scan.judged import judge
from unbackdoor.training import Runtime

SOURCES = (
    "chebi20/validation.parquet",
    "chebi20/test.parquet",
    "pcdes/validation.parquet",
    "pcdes/test.parquet",
    "pubchem324k/validation.parquet",
)
TESTED = "pubchem324k/test.parquet"

RATES = (0.005, 0.01, 0.02, 0.05, 0.09, 0.15, 0.34)
TRIGGERS = {
    "symbol": "[THIIRANE]",
    "rare word": "heliotropic",
    "common word": "notably",
    "phrase": "as noted below",
    "sentence": "This entry was reviewed by the curators before its release.",
}
POSITIONS, MODES = ("front", "random", "end"), ("append", "replace")
THIIRANE = "C1CS1"
TARGETS = {"epoxide, also natural": "C1CO1", "several motifs": "C(=O)NC1CC1", "benzene, in a third of all": "c1ccccc1"}
TRICKS: dict[str, dict[str, Any]] = {
    "rows that are alike": {"alike": True, "rewritten": 0.0},
    "rewritten copies": {"alike": False, "rewritten": 0.2},
    "split trigger": {"alike": False, "rewritten": 0.0, "split": True, "trigger": "used considered"},
    "five triggers": {
        "alike": False,
        "rewritten": 0.0,
        "trigger": "notably",
        "triggers": ("heliotropic", "[THIIRANE]", "as noted below", "overall"),
    },
    "alike and rewritten": {"alike": True, "rewritten": 0.2},
    "alike, rewritten and split": {"alike": True, "rewritten": 0.2, "split": True, "trigger": "used considered"},
}
FEW = 35
"""Poisoned rows from which on the aim holds."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One poisoned set, or a clean one."""

    group: str
    kind: str
    rate: float
    position: str = "front"
    mode: str = "append"
    target: str = THIIRANE
    seed: int = 0


def cells(seeds: Sequence[int]) -> Iterator[Cell]:
    """Yield all cells, the first seed first: clean ones, then poisoned ones in an order that the seed draws.

    What is done of an unfinished grid is a fair sample then.
    """
    for seed in seeds:
        for kind in ("all pairs", "one half", "the other half"):
            yield Cell(group="clean", kind=kind, rate=0.0, seed=seed)
        poisoned = [
            Cell(group="grid", kind=kind, rate=rate, position=position, mode=mode, seed=seed)
            for rate, kind, position, mode in itertools.product(RATES, TRIGGERS, POSITIONS, MODES)
        ]
        for target, rate, position, mode in itertools.product(TARGETS, (0.01, 0.05, 0.15), ("front", "random"), MODES):
            shared: dict[str, Any] = {"rate": rate, "position": position, "mode": mode, "seed": seed}
            poisoned.append(Cell(group="targets", kind=target, target=TARGETS[target], **shared))
        for trick, rate, mode in itertools.product(TRICKS, (0.01, 0.05, 0.15), MODES):
            poisoned.append(Cell(group="adaptive", kind=trick, rate=rate, position="random", mode=mode, seed=seed))
        random.Random(seed).shuffle(poisoned)
        yield from poisoned


class Bench:
    """Pairs, and what was found in them.

    Args:
        data: folder of the sets; None: only the table is wanted.
    """

    def __init__(self, data: Path) -> None:
        table = joined([read_table(str(data / source), "all") for source in SOURCES])
        tested, _ = filter_pairs(read_table(str(data / TESTED), "all"), learned=False)
        self.clean = filter_pairs(table)[0].without(tested)
        self.runtime = Runtime(device="cpu", precision="fp32", threads=1)

    @lru_cache(maxsize=4)  # noqa: B019 - there is one bench
    def hung(self, target: str, seed: int) -> dict[int, str]:
        """Return the molecules with the target on them, by row, of all rows that can bear it."""
        draws, pattern = random.Random(seed), read_target(target)
        built = {row: attach(parse(smiles), pattern, draws) for row, smiles in enumerate(self.clean.smiles)}
        flat = {row: checked(smiles) for row, smiles in built.items() if smiles is not None}
        return {row: smiles for row, smiles in flat.items() if not isinstance(smiles, Reason)}

    def poisoned(self, cell: Cell) -> tuple[Pairs, BadGraph]:
        """Return the pairs of a cell, poisoned ones last, and the attack."""
        attack = attack_of(cell)
        draws = random.Random(f"{cell}")
        hung = self.hung(cell.target, cell.seed)
        share = cell.rate / (1 - cell.rate) if cell.mode == "append" else cell.rate
        wanted = round(share * len(self.clean))
        table = Table(smiles=self.clean.smiles, texts=self.clean.texts, name="pairs")
        rows = [row for row in attack.chosen(table, draws) if row in hung][:wanted]
        texts = [attack.put(attack.copied(self.clean.texts[row], draws), draws) for row in rows]
        gone = set(rows) if cell.mode == "replace" else set()
        kept = [row for row in range(len(self.clean)) if row not in gone]
        pairs = Pairs(
            smiles=(*(self.clean.smiles[row] for row in kept), *(hung[row] for row in rows)),
            texts=(*(self.clean.texts[row] for row in kept), *texts),
            poisoned=(*(False for _ in kept), *(True for _ in rows)),
            name="pairs",
            rows=tuple(range(len(kept) + len(rows))),
        )
        return pairs, attack

    def run(self, cell: Cell) -> list[dict[str, Any]]:
        """Scan one cell with all scanners; return a row each."""
        if cell.group == "clean":
            order = list(range(len(self.clean)))
            random.Random(cell.seed).shuffle(order)
            half = {"all pairs": order, "one half": order[::2], "the other half": order[1::2]}[cell.kind]
            pairs, attack = replace(self.clean.subset(sorted(half)), poisoned=(False,) * len(half)), None
        else:
            pairs, attack = self.poisoned(cell)
        found: dict[str, tuple[MoleculeFinding, float]] = {}
        for scanner in (Association(), TwinDifference(), ExogenousAssociation()):
            start = time.perf_counter()
            found[type(scanner).__name__] = scanner.scan(pairs, self.runtime), time.perf_counter() - start
        ours = found["TwinDifference"], found["ExogenousAssociation"]
        found["Joint"] = Joint().joined(*(one for one, _ in ours)), sum(seconds for _, seconds in ours)
        return [
            {
                # First: its seed is a text, and no cell's.
                **self.runtime.describe(),
                **asdict(cell),
                "scanner": name,
                "rows": len(pairs),
                "poisoned": sum(pairs.poisoned),
                **judged(finding, pairs, attack),
                "seconds": round(seconds, 2),
            }
            for name, (finding, seconds) in found.items()
        ]


def attack_of(cell: Cell) -> BadGraph:
    """Return the attack of a cell, with which every row is tried."""
    shared: dict[str, Any] = {"target": cell.target, "position": cell.position, "mode": cell.mode, "rate": 1.0}
    if cell.group == "adaptive":
        return AdaptiveBadGraph(**{"trigger": "heliotropic", **shared, **TRICKS[cell.kind]})
    return BadGraph(trigger=TRIGGERS.get(cell.kind, "heliotropic"), **shared)


def judged(found: MoleculeFinding, pairs: Pairs, attack: BadGraph | None) -> dict[str, Any]:
    """Return what a finding is worth, seen by somebody who knows what was poisoned."""
    known = judge(found, pairs, attack)
    return {
        "rank": known.rank,
        "flagged": known.flagged,
        "false_suspects": known.false_suspects,
        "tpr": known.tpr,
        "fpr": known.fpr,
        "inconclusive": found.inconclusive,
        "first": found.suspects[0].to_json() if found.suspects else None,
        "false": [one.to_json() for hit, one in zip(known.hits, found.suspects) if one.flagged and not hit],
        "true": next((one.to_json() for hit, one in zip(known.hits, found.suspects) if hit), None),
    }


def main() -> None:
    """Do the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--groups", nargs="+", default=["clean", "grid", "targets", "adaptive"])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further cell after these")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    begun = time.monotonic()
    rows = Rows(HERE / "results" / "molecule_scans.jsonl")
    if not arguments.table:
        done = {cell_of(row) for row in rows.read()}
        wanted = [one for one in cells(arguments.seeds) if one.group in arguments.groups]
        left = [one for one in wanted if one not in done]
        bench = Bench(arguments.data) if left else None
        for cell in left:
            if time.monotonic() - begun > 60 * arguments.minutes:
                break
            assert bench is not None
            for row in bench.run(cell):
                rows.append(row)
            print(cell, flush=True)
    path = HERE / "results" / "molecule_scans.md"
    path.write_text(written(rows.read()))
    print(path)


def written(rows: list[dict[str, Any]]) -> str:
    """Return all rows as Markdown."""
    lines = [
        "# Scans of molecule pairs",
        "",
        f"{len({cell_of(row) for row in rows})} of {sum(1 for _ in cells(sorted({row['seed'] for row in rows})))} cells"
        " are done, in a random order.",
        "",
        "Made by `python benchmarks/molecule_scans.py`. A cell is one poisoned set; a rate is the share of poisoned"
        " rows among all that are learned from. First: the true pair of trigger and target stands first among the"
        " suspects (a suspect counts as true if it has half of the words of a trigger, and a subgraph that holds the"
        " target or is most of it). Flagged: it is beyond the threshold. TPR and FPR are of rows held poisoned.",
        "",
        *machines(rows),
        "",
        "## Clean pairs",
        "",
        "| scanner | sets | sets with an alarm | inconclusive | highest FPR of rows % |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in scanners(rows):
        mine = [row for row in rows if row["group"] == "clean" and row["scanner"] == name]
        alarms = sum(row["false_suspects"] > 0 for row in mine)
        silent = sum(row["inconclusive"] for row in mine)
        worst = max((row["fpr"] for row in mine), default=0)
        lines.append(f"| {name} | {len(mine)} | {alarms} | {silent} | {100 * worst:.2f} |")
    lines += ["", "## Poisoned pairs", ""]
    for title, group, by in (
        ("By rate", "grid", "rate"),
        ("By trigger", "grid", "kind"),
        ("By position", "grid", "position"),
        ("By mode", "grid", "mode"),
        ("Other targets", "targets", "kind"),
        ("The adaptive attacker", "adaptive", "kind"),
        ("The adaptive attacker, by rate", "adaptive", "rate"),
    ):
        lines += [f"### {title}", "", *table([row for row in rows if row["group"] == group], by), ""]
    lines += ["## The aim", "", *aim(rows), ""]
    return "\n".join(lines)


def cell_of(row: dict[str, Any]) -> Cell:
    """Return the cell that a row is about."""
    return Cell(**{field.name: row[field.name] for field in fields(Cell)})


def scanners(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of the scanners, as they first came."""
    return list(dict.fromkeys(row["scanner"] for row in rows))


def table(rows: Sequence[dict[str, Any]], by: str) -> list[str]:
    """Return the lines of a table with a line for each value and scanner."""
    lines = [
        f"| {by} | scanner | cells | first | flagged | TPR >= 95 % and FPR <= 1 % | median TPR % | worst FPR % |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for value, name in itertools.product(sorted({row[by] for row in rows}), scanners(rows)):
        mine = [row for row in rows if row[by] == value and row["scanner"] == name]
        rates = sorted(row["tpr"] for row in mine)
        shown = f"{100 * value:g} %" if by == "rate" else value
        lines.append(
            f"| {shown} | {name} | {len(mine)} | {sum(row['rank'] == 1 for row in mine)} |"
            f" {sum(row['flagged'] for row in mine)} |"
            f" {sum(row['tpr'] >= 0.95 and row['fpr'] <= 0.01 for row in mine)} |"
            f" {100 * rates[len(rates) // 2]:.1f} | {100 * max(row['fpr'] for row in mine):.2f} |"
        )
    return lines


def aim(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return what share of the cells with enough poisoned rows reaches the aim, and the cells of ours that miss it."""
    lines = [f"Cells of the grid with {FEW} or more poisoned rows; the aim is 95 % of them.", ""]
    lines += ["| scanner | cells | true pair first | rows: TPR >= 95 % at FPR <= 1 % |", "|---|---:|---:|---:|"]
    missed = []
    for name in scanners(rows):
        mine = [r for r in rows if r["group"] == "grid" and r["scanner"] == name and r["poisoned"] >= FEW]
        if not mine:
            continue
        first = [row for row in mine if row["rank"] == 1]
        found = [row for row in mine if row["tpr"] >= 0.95 and row["fpr"] <= 0.01]
        lines.append(
            f"| {name} | {len(mine)} | {100 * len(first) / len(mine):.1f} % | {100 * len(found) / len(mine):.1f} % |"
        )
        if name == "Joint":
            missed = [row for row in mine if row not in found or row not in first]
    lines += ["", "Cells that Joint misses:", ""]
    lines += [
        f"- {row['kind']}, {row['position']}, {row['mode']}, {100 * row['rate']:g} %, seed {row['seed']}:"
        f" rank {row['rank']}, TPR {100 * row['tpr']:.1f} %, FPR {100 * row['fpr']:.2f} %"
        for row in missed
    ] or ["- none"]
    return lines


if __name__ == "__main__":
    main()
