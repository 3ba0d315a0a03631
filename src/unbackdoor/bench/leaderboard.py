"""The leaderboard: what the cells of a store say about methods, for every view that the page offers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from unbackdoor.bench.curves import curves
from unbackdoor.bench.table import (
    BLOCK,
    REPAIRED,
    SECURED,
    SIFTED,
    Trials,
    block_means,
    fair,
    mean_of,
    newest,
    rank_intervals,
    seed_interval,
    trials,
    unrated,
)
from unbackdoor.errors import InputError
from unbackdoor.report import Fact
from unbackdoor.report.leaderboard import (
    Estimate,
    Filter,
    Leaderboard,
    Row,
    ScannerRow,
    Selection,
    Standing,
)

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


def ranking(tried: Trials) -> list[Row]:
    """Return the methods that repair, the ranked ones first and by rank."""
    if not tried.methods:
        return []
    tried, ranked = fair(tried)
    ranks = _ranks(tried, ranked)
    rows = [_row(tried, number, ranks.get(number)) for number in range(len(tried.methods))]
    return sorted(rows, key=lambda row: (row.rank.value if row.rank else math.inf, row.method))


def standings(tried: Trials, on_clean_data: pd.DataFrame | None = None) -> list[Standing]:
    """Return the methods of another kind, the ranked ones first and by rank.

    Args:
        tried: on data with an attack.
        on_clean_data: the cells of sifters on data without one; their share of false alarms becomes the figure "clean".
    """
    tried, ranked = fair(tried) if tried.methods else (tried, np.empty(0, dtype=int))
    ranks = _ranks(tried, ranked)
    alarms = {} if on_clean_data is None else dict(_alarms(on_clean_data))
    rows = []
    for number, method in enumerate(tried.methods):
        everywhere = np.full(len(tried.blocks), True)
        rows.append(
            Standing(
                method=method,
                blocks=int(tried.there[number].any(1).sum()),
                of=len(tried.blocks),
                complete=bool(np.isin(number, ranked)),
                rank=_rank(ranks.get(number)),
                figures={**_estimates(tried, number, everywhere), **alarms.pop(method, {})},
                attacks=_by_attack(tried, number),
                seconds=mean_of(tried.values["seconds"][number]),
                peak_mb=mean_of(tried.values["peak_mb"][number]),
                peak_gpu_mb=mean_of(tried.values["peak_gpu_mb"][number]),
            )
        )
    rows += [
        Standing(method=method, blocks=0, of=len(tried.blocks), complete=False, figures=figures)
        for method, figures in alarms.items()
    ]
    return sorted(rows, key=lambda row: (row.rank.value if row.rank else math.inf, not row.complete, row.method))


def _alarms(cells: pd.DataFrame) -> Iterator[tuple[str, dict[str, Estimate]]]:
    """Yield for each sifter the mean share of rows of clean data that it holds poisoned."""
    tried = trials(cells.assign(auroc=0.5), SIFTED)
    for number, method in enumerate(tried.methods):
        values = tried.values["fpr"][number]
        if (mean := mean_of(values)) is not None:
            low, high = seed_interval(values)
            yield method, {"clean": Estimate(value=mean, low=low, high=high)}


def _ranks(tried: Trials, ranked: Int[np.ndarray, "ranked"]) -> dict[int, list[float]]:
    """Return rank and ends of its interval, by method; none where the figure that ranks is not everywhere."""
    if not len(ranked):
        return {}
    best, there = tried.values[tried.judged.best][ranked], tried.there[ranked]
    if np.isnan(best[there]).any():
        return {}
    means = block_means(best)
    means = means[:, ~np.isnan(means).any(0)]
    return dict(zip(ranked.tolist(), rank_intervals(means.T).tolist()))


def _rank(found: Sequence[float] | None) -> Estimate | None:
    return None if found is None else Estimate(value=found[0], low=_number(found[1]), high=_number(found[2]))


def _row(tried: Trials, method: int, rank: Sequence[float] | None) -> Row:
    everywhere = np.full(len(tried.blocks), True)
    shares = _estimates(tried, method, everywhere)
    return Row(
        method=tried.methods[method],
        blocks=int(tried.there[method].any(1).sum()),
        der=shares["der"],
        rank=_rank(rank),
        acc=shares.get("acc"),
        asr=shares.get("asr"),
        ra=shares.get("ra"),
        seconds=mean_of(tried.values["seconds"][method]),
        peak_mb=mean_of(tried.values["peak_mb"][method]),
        peak_gpu_mb=mean_of(tried.values["peak_gpu_mb"][method]),
        attacks=_by_attack(tried, method),
    )


def _by_attack(tried: Trials, method: int) -> dict[str, dict[str, Estimate]]:
    """Return what one method reached on each attack that it was tried on."""
    attacks = tried.blocks["attack"].to_numpy()
    found = {str(attack): _estimates(tried, method, attacks == attack) for attack in dict.fromkeys(attacks)}
    return {attack: estimates for attack, estimates in found.items() if estimates}


def _estimates(tried: Trials, method: int, blocks: Bool[np.ndarray, "blocks"]) -> dict[str, Estimate]:
    """Return the means of one method's figures over some blocks, with their intervals over seeds."""
    found = {}
    for name in tried.judged.figures:
        values = tried.values[name][method, blocks]
        if (mean := mean_of(values)) is not None:
            low, high = seed_interval(values)
            found[name] = Estimate(value=mean, low=low, high=high)
    return found


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
        scanners=[_scanner(str(method), group) for method, group in scans.groupby("method")],
        curves=[*curves(repaired, "methods"), *curves(secured, "trainers"), *curves(sifted, "sifters")],
        trainers=standings(secured),
        sifters=standings(sifted, sifted_clean),
    )


def _scanner(method: str, cells: pd.DataFrame) -> ScannerRow:
    truth = cells["backdoored"] if "backdoored" in cells else pd.Series(math.nan, index=cells.index)
    backdoored, clean = cells[truth == 1], cells[truth == 0]
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
        seconds=_mean(cells, "seconds"),
        peak_mb=_mean(cells, "peak_mb"),
        peak_gpu_mb=_mean(cells, "peak_gpu_mb"),
        attacks={
            str(attack): (int((flagged[group.index] == 1).sum()), len(group))
            for attack, group in backdoored.groupby("attack")
        },
    )


def _mean(cells: pd.DataFrame, name: str) -> float | None:
    known = cells[name].dropna() if name in cells else pd.Series(dtype=float)
    return float(known.mean()) if len(known) else None


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
