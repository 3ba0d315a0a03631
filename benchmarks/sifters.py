"""Every sifter on the poisoned training data of several attacks: the cells of a grid, resumable.

Writes one line of JSON a finished sifting to results/NAME.jsonl and the table results/NAME.md, where NAME is the
grid's. The attack is made ready once, and the quick model learned once, for all sifters of a data set and seed; both
are kept in --work. A finished cell is not done again:

    python benchmarks/sifters.py benchmarks/grids/sift-small.yaml
    python benchmarks/sifters.py benchmarks/grids/sift-small.yaml --table     # only write the table
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from grid_cells import run_grid
from record import machines
from tables import Row, all_measured, clocks, disturbed, interval, mean, percent, refusals

LITTLE = 0.01
"""Poison rate up to which poison is little; the aims are for more."""

ATTACKS, SEEDS = 6, 3
"""That an aim is of; with fewer nothing is judged."""
MINUTES = 12
AIMS: Sequence[tuple[str, str, str, float, bool]] = (
    ("FCT", "auroc", "AUROC, mean over attacks", 0.95, True),
    ("Consensus", "auroc", "AUROC, mean over attacks", 0.98, True),
    ("Consensus", "tpr_at_1", "TPR at FPR 1 %, mean over attacks", 0.90, True),
    ("Consensus", "tpr", "TPR of the rows that it holds poisoned, mean over attacks", 0.90, True),
    ("Consensus", "fpr", "FPR of the rows that it holds poisoned, mean over attacks", 0.01, False),
    ("Consensus", "clean", "rows of clean data held poisoned, mean over seeds", 0.01, False),
)
"""Method, figure, what it is, the aim, and whether more is better."""

LOOKED_AT = {"Consensus": (0, 1)}
"""Seeds in sight of which a method's rule was made (docs/methods/consensus.md): they cannot judge it."""


def written(grid: str, wanted: int, rows: Sequence[Row]) -> str:
    """Return the siftings as Markdown: aims, means of each sifter, AUROC by attack, then every cell."""
    lines = [
        f"# {grid}",
        "",
        f"Made by `python benchmarks/sifters.py benchmarks/grids/{grid}`; {len(rows)} of {wanted} cells are done."
        " AUROC, TPR at FPR 1 % (the share of poisoned rows that score above all but 1 % of the clean ones: a threshold"
        " that only who knows the clean rows can set), and TPR and FPR of the rows that the sifter itself holds"
        " poisoned, which is what its users get. The rule of Consensus was made in sight of runs with the seeds"
        f" {' and '.join(map(str, LOOKED_AT['Consensus']))}, so its aims are judged on others alone. Means are over"
        " attacks, each the mean over its seeds. Seconds are of the wall clock, with learning the model; of the quick"
        " model, which sifters share, every one of them is charged all. CPU seconds tell whether a row was disturbed:"
        " undisturbed, they are close to twice as many on two threads. Peak MB is the largest of the processes that"
        " learned and sifted, with data and libraries.",
        "",
        *machines(list(rows)),
        "",
    ]
    refused = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    lines += [*_aims(rows), ""]
    for title, chosen in (("above 1 %", _much), ("of 1 %", _little)):
        found = [row for row in rows if chosen(row)]
        if found:
            lines += [f"## Poison {title}", "", *_means(found, rows), "", *_by_attack(found), ""]
    lines += ["## Every cell", "", *_cells(rows)]
    if refused:
        lines += ["", *refusals(refused)]
    return "\n".join(lines) + "\n"


def _much(row: Row) -> bool:
    return "auroc" in row and not _little(row)


def _little(row: Row) -> bool:
    return "auroc" in row and row["poison_rate"] is not None and row["poison_rate"] <= LITTLE


def _aims(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what was to be reached, beside what was."""
    yield "| sifter | figure (poison above 1 %) | aim | reached | yes |"
    yield "|---|---|---:|---:|---|"
    for method, name, words, aim, more in AIMS:
        mine = [row for row in rows if row["method"].split()[0] == method]
        unseen = [row for row in mine if row["seed"] not in LOOKED_AT.get(method, ())]
        mine = unseen or mine
        if name == "clean":
            mine = [row for row in mine if "auroc" not in row]
            value = statistics.mean(row["fpr"] for row in mine) if mine else None
        else:
            mine = [row for row in mine if _much(row)]
            value = mean(mine, name)
        if value is not None:
            reached = value >= aim if more else value <= aim
            whole = all_measured(mine, 1 if name == "clean" else ATTACKS, SEEDS)
            told = "not judged" if not unseen else _yes(reached) if whole else "not all measured"
            yield f"| {method} | {words} | {percent(aim)} | {percent(value)} | {told} |"
    for method in dict.fromkeys(aim[0] for aim in AIMS):
        mine = [row for row in rows if row["method"].split()[0] == method and "seconds" in row]
        mine = [row for row in mine if not disturbed(row)]
        if mine:
            longest = max(mine, key=lambda row: row["seconds"])
            minutes, which = longest["seconds"] / 60, longest["attack"]
            yield (
                f"| {method} | minutes, the longest of undisturbed ones ({which}) | {MINUTES} | {minutes:.1f} |"
                f" {_yes(minutes <= MINUTES)} |"
            )


def _means(rows: Sequence[Row], everything: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each sifter."""
    yield (
        "| sifter | attacks | seeds | AUROC % | worst attack | TPR at FPR 1 % | TPR % | FPR % | of clean data held % |"
        " seconds | peak MB |"
    )
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    for method in _ordered(rows):
        mine = [row for row in rows if row["method"] == method]
        attacks = sorted({row["attack"] for row in mine})
        means = {attack: mean([row for row in mine if row["attack"] == attack], "auroc") or 0.0 for attack in attacks}
        worst = min(attacks, key=lambda attack: means[attack])
        clean = [row["fpr"] for row in everything if row["method"] == method and "auroc" not in row]
        seconds = [row["seconds"] for row in mine if "seconds" in row]
        shares = [percent(mean(mine, name)) for name in ("tpr_at_1", "tpr", "fpr")]
        fields = [
            *(method, str(len(attacks)), str(len({row["seed"] for row in mine})), percent(mean(mine, "auroc"))),
            *(f"{percent(means[worst])} ({worst})", *shares),
            percent(statistics.mean(clean) if clean else None),
            *(f"{statistics.mean(seconds):.0f}" if seconds else "", f"{max(map(_peak, mine)):.0f}"),
        ]
        yield f"| {' | '.join(fields)} |"


def _by_attack(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the AUROC of each sifter on each attack."""
    attacks = sorted({row["attack"] for row in rows})
    yield f"| AUROC %, mean and worst seed | {' | '.join(attacks)} |"
    yield f"|---|{'---:|' * len(attacks)}"
    for method in _ordered(rows):
        fields = []
        for attack in attacks:
            found = [row["auroc"] for row in rows if (row["method"], row["attack"]) == (method, attack)]
            fields.append(f"{percent(statistics.mean(found))} ({percent(min(found))})" if found else "")
        yield f"| {method} | {' | '.join(fields)} |"


def _cells(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "| attack | poison % | sifter | seed | AUROC % [95 % interval] | TPR at FPR 1 % | TPR % | FPR % | held % |"
        " seconds | CPU seconds | peak MB |"
    )
    yield "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in sorted(rows, key=_order):
        rate = "" if row["poison_rate"] is None else f"{100 * row['poison_rate']:g}"
        fields = [
            *(row["attack"], rate, row["method"], f"{row['seed']:g}", interval(row, "auroc")),
            *(percent(row.get(name)) for name in ("tpr_at_1", "tpr", "fpr", "held")),
            *clocks(row),
            f"{_peak(row):.0f}",
        ]
        yield f"| {' | '.join(fields)} |"


def _order(row: Row) -> tuple[Any, ...]:
    return row["attack"], -(row["poison_rate"] or 0), -row.get("auroc", 0), row["method"], row["seed"]


def _ordered(rows: Sequence[Row]) -> list[str]:
    """Return the sifters, the best first."""
    methods = {row["method"] for row in rows}
    areas = {method: mean([row for row in rows if row["method"] == method], "auroc") or 0.0 for method in methods}
    return sorted(methods, key=lambda method: (-areas[method], method))


def _peak(row: Row) -> float:
    """Return the largest memory of sifting, and of learning the quick model before it."""
    return float(max(row["peak_mb"], row["before"].get("peak_mb", 0) if "learning_seconds" in row else 0))


def _yes(reached: bool) -> str:
    return "yes" if reached else "no"


if __name__ == "__main__":
    run_grid(__doc__, ["sift"], written, "build/sifters")
