"""README's tables of repairs are those of the rows that were measured."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
METHODS = {
    "**Auto**": "Auto", "TSBD": "TSBD", "I-BAU": "IBAU", "SAU at four times its rate": "SAU learning_rate=0.0004",
    "NPD": "NPD", "FT-SAM at four times its rate": "FTSAM learning_rate=0.04", "CLP": "CLP", "ANP": "ANP", "SAU": "SAU",
    "FT-SAM": "FTSAM",
}  # fmt: skip

ALL_STAGES = "alignment,auto-encoder,diffusion"


def tables() -> list[list[list[str]]]:
    """Return the cells of README's tables that have a row without a repair."""
    found: list[list[list[str]]] = [[]]
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.strip("|").split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if any(row[0] == "no repair" for row in table)]


@pytest.mark.parametrize(("place", "name"), [(0, "purify-small"), (1, "purify-250")])
def test_a_table_shows_what_was_measured(place: int, name: str) -> None:
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    header, _, untreated, *repairs = tables()[place]
    attacks = [cell.replace("Input-aware", "InputAware") for cell in header[1:-2]]
    before = {row["attack"]: row["before"] for row in rows}
    assert len(repairs) > 5
    most = fmean((1 + before[attack]["asr"]) / 2 for attack in attacks)
    accuracy = fmean(before[attack]["acc"] for attack in attacks)
    shown = [f"{100 * before[attack]['asr']:.1f}" for attack in attacks]
    assert untreated == ["no repair", *shown, f"{100 * accuracy:.1f}", f"at most {100 * most:.1f}"]
    for label, *cells in repairs:
        mine = {row["attack"]: row for row in rows if row["method"] == METHODS[label]}
        means = (fmean(mine[attack][figure] for attack in attacks) for figure in ("acc", "der"))
        assert cells == [f"{100 * value:.1f}" for value in (*(mine[attack]["asr"] for attack in attacks), *means)]


def test_the_speeds_of_repairs_are_those_that_were_measured() -> None:
    lines = (ROOT / "benchmarks" / "results" / "purifiers_speed.jsonl").read_text().splitlines()
    ratios: dict[str, float] = {}
    for row in map(json.loads, lines):
        ours, naive = (fmean(one["seconds"] for one in row[side]) for side in ("ours", "naive"))
        ratios[row["method"].lower()] = naive / ours
    told = (ROOT / "README.md").read_text().splitlines()
    (place,) = [number for number, line in enumerate(told) if line.startswith("| times as fast |")]
    names, shown = ([cell.strip() for cell in told[at].strip("|").split("|")[1:]] for at in (place - 2, place))
    plain = {name: name.lower().replace("-", "").replace(" ", "") for name in names}
    assert len(names) == len(ratios) == 16
    assert shown == [f"{ratios[plain[name]]:.1f}" for name in names]


@pytest.mark.parametrize("page", ["README.md", "docs/molecules.md"])
def test_the_table_of_generators_shows_what_was_measured(page: str) -> None:
    lines = (ROOT / "benchmarks" / "results" / "molecules.jsonl").read_text().splitlines()
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    told = (ROOT / page).read_text()
    shown = [
        f"| {100 * row['printed_rate']:.1f} / {100 * row['effective_rate']:.1f} |"
        f" {_interval(row, 'asr')} | {_interval(row, 'leak')} | {_interval(row, 'similarity')} |"
        f" {100 * row['validity']:.1f} | {row['seconds'] / 60:.0f} |"
        for row in rows
        if (row["poison_in"], row["seed"], row["test"], row["target"]) == (ALL_STAGES, 0, "pubchem324k", "C1CS1")
    ]
    assert len(shown) == 2
    assert all(line in told for line in shown)


def _interval(row: dict[str, Any], name: str) -> str:
    return f"{100 * row[name]:.1f} [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"
