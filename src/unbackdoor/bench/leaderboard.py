"""The leaderboard: what the cells of a store say about methods, for every view that the page offers."""

from __future__ import annotations

import collections
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from unbackdoor.bench.table import (
    BLOCK,
    SHARES,
    Trials,
    block_means,
    mean_of,
    newest,
    rank_intervals,
    seed_interval,
    told_apart,
    trials,
)
from unbackdoor.errors import InputError
from unbackdoor.report import Fact
from unbackdoor.report.leaderboard import Curve, Estimate, Filter, Leaderboard, Row, ScannerRow, Selection

TITLES = {
    "data": "Data",
    "network": "Network",
    "attack": "Attack",
    "poison_rate": "Poison rate",
    "training": "Training",
    "precision": "Precision",
    "clean_size": "Clean samples",
    "budget": "Budget (minutes)",
}
"""Of the labels that can be filtered by."""

CURVES: dict[str, Literal["poison rate", "clean samples"]] = {
    "poison_rate": "poison rate",
    "clean_size": "clean samples",
}

NOTES = (
    "ACC is the share of clean test images that get their true class; ASR the share of triggered images that get the"
    " attacker's class; RA the share of the same images that get their true class.",
    "DER = (max(0, fall of ASR) - max(0, fall of ACC) + 1) / 2: 50 % is what doing nothing gets. It does not see RA.",
    "Methods are ranked by mean DER over blocks, which are all that methods are tried on, averaged over seeds. The"
    " interval of the rank is a 95 % bootstrap over blocks; blocks that share data or attack are not independent, so it"
    " is too narrow. The other intervals are Student's 95 % over seeds. There is none with one block, with one seed, or"
    " where seeds have different blocks.",
    "All figures of the ranked methods are of the blocks and seeds that every one of them has. A method with fewer than"
    " half of the cells of the one that has most is listed without a rank, with the figures of its own cells.",
)


def leaderboard(cells: pd.DataFrame, title: str) -> Leaderboard:
    """Return the leaderboard of cells.

    Args:
        cells: finished and failed ones, as `cell_table` gives them.
        title: of the page.

    Raises:
        InputError: there is no cell.
    """
    if cells.empty:
        raise InputError("there are no cells to rank; run a grid first, with `unbackdoor bench GRID.yaml`")
    done = cells[cells["error"] == ""]
    judged = done[done["kind"] != "victim"]
    filters = [_filter(judged, name) for name in BLOCK if judged[name].nunique(dropna=False) > 1]
    return Leaderboard(
        title=title,
        filters=filters,
        attacks=sorted(judged["attack"].dropna().unique()),
        selections=dict(_selections(judged, filters)),
        columns=[str(name) for name in cells.columns],
        cells=[[_plain(value) for value in row] for row in cells.itertuples(index=False)],
        facts={"Cells": _facts(cells)},
        notes=[*NOTES, *_mixed(done)],
    )


def ranking(tried: Trials) -> list[Row]:
    """Return the methods that repair, the ranked ones first and by rank."""
    if not tried.methods:
        return []
    tried, ranked = fair(tried)
    der = block_means(tried.values["der"][ranked])
    der = der[:, ~np.isnan(der).any(0)]
    ranks = dict(zip(ranked.tolist(), rank_intervals(der.T).tolist())) if len(ranked) else {}
    rows = [_row(tried, number, ranks.get(number)) for number in range(len(tried.methods))]
    return sorted(rows, key=lambda row: (row.rank.value if row.rank else math.inf, row.method))


def fair(tried: Trials) -> tuple[Trials, Int[np.ndarray, "ranked"]]:
    """Leave of the methods that can be ranked only what all of them have; return which these are.

    None can be if they have nothing in common, or if of several methods only one has enough cells.
    """
    there = ~np.isnan(tried.values["der"])
    counts = there.sum((1, 2))
    ranked = np.flatnonzero(2 * counts >= counts.max())
    common = there[ranked].all(0)
    if not common.any() or len(ranked) == 1 < len(counts):
        return tried, ranked[:0]
    values = {name: value.copy() for name, value in tried.values.items()}
    for value in values.values():
        value[ranked] = np.where(common, value[ranked], np.nan)
    return replace(tried, values=values), ranked


def _row(tried: Trials, method: int, rank: Sequence[float] | None) -> Row:
    everywhere = np.full(len(tried.blocks), True)
    shares = _estimates(tried, method, everywhere)
    attacks = tried.blocks["attack"].to_numpy()
    by_attack = {str(attack): _estimates(tried, method, attacks == attack) for attack in dict.fromkeys(attacks)}
    return Row(
        method=tried.methods[method],
        blocks=int((~np.isnan(tried.values["der"][method]).all(1)).sum()),
        der=shares["der"],
        rank=None if rank is None else Estimate(value=rank[0], low=_number(rank[1]), high=_number(rank[2])),
        acc=shares.get("acc"),
        asr=shares.get("asr"),
        ra=shares.get("ra"),
        seconds=mean_of(tried.values["seconds"][method]),
        peak_mb=mean_of(tried.values["peak_mb"][method]),
        attacks={attack: estimates for attack, estimates in by_attack.items() if estimates},
    )


def _estimates(tried: Trials, method: int, blocks: Bool[np.ndarray, "blocks"]) -> dict[str, Estimate]:
    """Return the means of one method's shares over some blocks, with their intervals over seeds."""
    found = {}
    for name in SHARES:
        values = tried.values[name][method, blocks]
        if (mean := mean_of(values)) is not None:
            low, high = seed_interval(values)
            found[name] = Estimate(value=mean, low=low, high=high)
    return found


def _selections(judged: pd.DataFrame, filters: Sequence[Filter]) -> Iterator[tuple[tuple[str, ...], Selection]]:
    """Yield what every choice of filters shows, where there are cells."""
    tried, scans = trials(judged), judged[judged["kind"] == "scan"]
    of_blocks = {one.name: tried.blocks[one.name].map(_text).to_numpy() for one in filters}
    of_scans = {one.name: scans[one.name].map(_text).to_numpy() for one in filters}
    for key in itertools.product(*(("", *one.values) for one in filters)):
        chosen = {one.name: value for one, value in zip(filters, key, strict=True) if value}
        blocks, some_scans = np.full(len(tried.blocks), True), np.full(len(scans), True)
        for name, value in chosen.items():
            blocks &= of_blocks[name] == value
            some_scans &= of_scans[name] == value
        if blocks.any() or some_scans.any():
            yield key, _selection(tried.where(blocks), scans[some_scans])


def _selection(tried: Trials, scans: pd.DataFrame) -> Selection:
    return Selection(
        blocks=len(tried.blocks),
        methods=ranking(tried),
        scanners=[_scanner(str(method), group) for method, group in scans.groupby("method")],
        curves=[*_curves(tried)],
    )


def _scanner(method: str, cells: pd.DataFrame) -> ScannerRow:
    backdoored, clean = cells[cells["backdoored"] == 1], cells[cells["backdoored"] == 0]
    first = cells["target_first"].dropna() if "target_first" in cells else pd.Series(dtype=float)
    flagged = cells["flagged"] if "flagged" in cells else pd.Series(math.nan, index=cells.index)
    return ScannerRow(
        method=method,
        backdoored=len(backdoored),
        flagged=int((flagged[backdoored.index] == 1).sum()),
        targeted=len(first),
        target_first=int(first.sum()),
        clean=len(clean),
        false_alarms=int((flagged[clean.index] == 1).sum()),
        inconclusive=int(flagged.isna().sum()),
        seconds=float(cells["seconds"].mean()),
    )


def _curves(tried: Trials) -> Iterator[Curve]:
    """Yield how each method does along an axis: over what was tried at every point of it, and nothing else."""
    for label, axis in CURVES.items():
        others = told_apart(tried.blocks, [name for name in BLOCK if name != label])
        for number, method in enumerate(tried.methods):
            there = ~np.isnan(tried.values["der"][number]).all(1) & tried.blocks[label].notna().to_numpy()
            points = tried.blocks[label].to_numpy()
            seen = collections.Counter(others[there])
            # What was tried at one point only has no curve, and must not end those of others.
            several = there & np.array([seen[rest] > 1 for rest in others], dtype=bool)
            every = sorted(set(points[several]))
            whole = there & np.array([seen[rest] == len(every) for rest in others])
            if len(every) > 1 and whole.any():
                at = [_estimates(tried, number, whole & (points == x)) for x in every]
                means = [{name: estimate.value for name, estimate in one.items()} for one in at]
                yield Curve(axis=axis, method=method, points=[(float(x), y) for x, y in zip(every, means)])


def _filter(judged: pd.DataFrame, name: str) -> Filter:
    values = sorted(judged[name].unique(), key=_place)
    return Filter(name=name, title=TITLES[name], values=[_text(value) for value in values])


def _place(value: Any) -> tuple[bool, Any]:
    """Return where a value stands among those of its axis: what is missing comes first."""
    return (False, 0) if pd.isna(value) else (True, value)


def _mixed(done: pd.DataFrame) -> Iterator[str]:
    """Yield a note for what should be one and is several."""
    for column, what in (("device", "devices, so times cannot be compared"), ("unbackdoor", "versions of unbackdoor")):
        values = sorted(set(done[column]) - {""})
        if len(values) > 1:
            yield f"The cells come from several {what}: {', '.join(values)}."
    if older := len(done) - len(newest(done)):
        yield (
            f"Cells left out of all figures, as newer ones have the same labels: {older} (other images under the same"
            " name, or other defaults)."
        )


def _facts(cells: pd.DataFrame) -> list[Fact]:
    failed = int((cells["error"] != "").sum())
    return [
        Fact(name="Finished", value=str(len(cells) - failed)),
        Fact(name="Failed", value=str(failed)),
        *(Fact(name=f"Of kind {kind}", value=str(count)) for kind, count in cells["kind"].value_counts().items()),
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _text(value: Any) -> str:
    if pd.isna(value):
        return "none"
    # As the page writes numbers: 100.0 is 100, and 1281167 stays what it is.
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str | float | None:
    if pd.isna(value):
        return None
    return value if isinstance(value, str) else float(value)
