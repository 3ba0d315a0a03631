"""The leaderboard: what the cells of a store say about methods, for every view that the page offers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from unbackdoor.bench.curves import curves
from unbackdoor.bench.standings import ranking, scanned, standings
from unbackdoor.bench.table import BLOCK, REPAIRED, SECURED, SIFTED, Trials, newest, trials, unrated
from unbackdoor.errors import InputError
from unbackdoor.report import Fact
from unbackdoor.report.leaderboard import Filter, Leaderboard, Selection

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

MOST_SELECTIONS = 4000
"""Choices of filters that a page has: each takes milliseconds to compute and kilobytes to keep."""

CLEAN_SIZE = "clean_size"
"""The label that is none of blocks where clean samples are a method's own affair."""

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
    "A curve is over the settings and seeds that all methods with a curve have at each of its points; a method with"
    " fewer than half of the cells of the one that has most has none. Where some settings have other points than others"
    ", a method has a curve for each set of points.",
)

SCAN_NOTE = "Scanners: each is counted over all models that it scanned, which need not be those of another one."
SECURE_NOTE = (
    "Models that were trained securely have a DER where the same data gave a model without a defence: that is the one"
    " before. MSE is the error with which a decoder, of methods that train one, reconstructs images from 0 to 1."
)
SIFT_NOTE = (
    "Sifters: AUROC is the chance that a poisoned row has a higher score than a clean one; TPR at FPR 1 % the share of"
    " poisoned rows above all but 1 % of the clean ones; TPR and FPR are of the rows that the sifter itself holds"
    " poisoned; false alarms are its FPR on all data without an attack that it was tried on. They are ranked by AUROC."
)
"""Of a board that has such methods."""


MIXED = {
    "device": "devices, so times cannot be compared",
    "threads": "numbers of threads, so times cannot be compared",
    "unbackdoor": "versions of unbackdoor",
    "commit": "commits of unbackdoor",
    "torch": "versions of torch",
}
"""Columns of cells that should have one value, and what several of them are."""

MOST_NAMED = 5


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
    # The others are only there for these to start from.
    judged = done[done["kind"].isin([REPAIRED.kind, "scan", SIFTED.kind, SECURED.kind])]
    filters, left_out = _filters(judged)
    return Leaderboard(
        title=title,
        filters=filters,
        attacks=sorted(judged["attack"].dropna().unique()),
        selections=dict(_selections(judged, filters)),
        columns=[str(name) for name in cells.columns],
        cells=[[_plain(value) for value in row] for row in cells.itertuples(index=False)],
        facts={"Cells": _facts(cells)},
        notes=[*NOTES, *_of_kinds(judged), *_mixed(done), *_unfiltered(left_out)],
    )


def _selections(judged: pd.DataFrame, filters: Sequence[Filter]) -> Iterator[tuple[tuple[str, ...], Selection]]:
    """Yield what every choice of filters shows, where there are cells."""
    tried = [trials(judged, kind) for kind in (REPAIRED, SECURED, SIFTED)]
    no_poison = judged["auroc"].isna() if "auroc" in judged else judged["kind"] == SIFTED.kind
    scans = newest(judged[judged["kind"] == "scan"])
    sifted_clean = judged[(judged["kind"] == SIFTED.kind) & no_poison]
    rows = [*((some.blocks, some.judged.own_clean) for some in tried), (scans, False), (sifted_clean, True)]
    parts = [
        {one.name: some[one.name].map(_text).to_numpy() for one in filters if not (own and one.name == CLEAN_SIZE)}
        for some, own in rows
    ]
    for key in itertools.product(*(("", *one.values) for one in filters)):
        chosen = {one.name: value for one, value in zip(filters, key, strict=True) if value}
        masks = [_fits(labels, chosen, len(some)) for labels, (some, _) in zip(parts, rows, strict=True)]
        if any(mask.any() for mask in masks):
            repaired, secured, sifted = (some.where(mask) for some, mask in zip(tried, masks))
            yield key, _selection(repaired, secured, sifted, scans[masks[-2]], sifted_clean[masks[-1]])


def _fits(
    labels: Mapping[str, Shaped[np.ndarray, "rows"]], chosen: Mapping[str, str], rows: int
) -> Bool[np.ndarray, "rows"]:
    """Return which rows have the chosen labels; one that they do not tell is no matter."""
    fits = np.full(rows, True)
    for name, value in chosen.items():
        if name in labels:
            fits &= labels[name] == value
    return fits


def _selection(
    repaired: Trials, secured: Trials, sifted: Trials, scans: pd.DataFrame, sifted_clean: pd.DataFrame
) -> Selection:
    return Selection(
        blocks=len(repaired.blocks),
        methods=ranking(repaired),
        scanners=[scanned(str(method), group) for method, group in scans.groupby("method")],
        curves=[*curves(repaired, "methods"), *curves(secured, "trainers"), *curves(sifted, "sifters")],
        trainers=standings(secured),
        sifters=standings(sifted, sifted_clean),
    )


def _with(judged: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the cells that a label of blocks is told of."""
    own = [kind.kind for kind in (SECURED, SIFTED) if kind.own_clean and name == CLEAN_SIZE]
    return judged[~judged["kind"].isin(own)]


def _varies(judged: pd.DataFrame, name: str) -> bool:
    """Return whether cells of one kind differ in a label; that those of another kind have none is no choice."""
    return any(cells[name].nunique(dropna=False) > 1 for _, cells in _with(judged, name).groupby("kind"))


def _of_kinds(judged: pd.DataFrame) -> Iterator[str]:
    """Yield the notes on kinds of methods that there are."""
    for kind, note in (("scan", SCAN_NOTE), (SECURED.kind, SECURE_NOTE), (SIFTED.kind, SIFT_NOTE)):
        if (judged["kind"] == kind).any():
            yield note


def _filters(judged: pd.DataFrame) -> tuple[list[Filter], list[Filter]]:
    """Return a filter for each label that varies, and those that would make too many choices."""
    filters: list[Filter] = []
    left_out: list[Filter] = []
    choices = 1
    for one in (_filter(judged, name) for name in BLOCK if _varies(judged, name)):
        more = choices * (len(one.values) + 1)
        choices = more if more <= MOST_SELECTIONS else choices
        (filters if choices == more else left_out).append(one)
    return filters, left_out


def _unfiltered(left_out: Sequence[Filter]) -> Iterator[str]:
    if left_out:
        yield (
            f"There are too many choices for filters of {', '.join(one.title for one in left_out)}; the cells of one"
            " grid have fewer (`unbackdoor leaderboard --grid GRID.yaml`)."
        )


def _filter(judged: pd.DataFrame, name: str) -> Filter:
    values = sorted(_with(judged, name)[name].unique(), key=_place)
    return Filter(name=name, title=TITLES[name], values=[_text(value) for value in values])


def _place(value: Any) -> tuple[bool, Any]:
    """Return where a value stands among those of its axis: what is missing comes first."""
    return (False, 0) if pd.isna(value) else (True, value)


def _mixed(done: pd.DataFrame) -> Iterator[str]:
    """Yield a note for what should be one and is several."""
    for column, what in MIXED.items():
        values = sorted(set(done[column]) - {""})
        if len(values) > 1:
            more = f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED else ""
            yield f"The cells come from several {what}: {', '.join(values[:MOST_NAMED])}{more}."
    if count := unrated(done):
        yield (
            f"Models that were trained securely and have no DER: {count}. The store has models without a defence on the"
            " same data that were trained in different ways, and none of them is the one before; the cells of one grid"
            " have one (`unbackdoor leaderboard --grid GRID.yaml`)."
        )
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


def _text(value: Any) -> str:
    if pd.isna(value):
        return "none"
    # As the page writes numbers: 100.0 is 100, and 1281167 stays what it is.
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> str | float | None:
    if pd.isna(value):
        return None
    return value if isinstance(value, str) else float(value)
