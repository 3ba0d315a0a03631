"""Cells as tables: one row a cell, and what every method reached in every block and seed, from which all means come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped
from scipy import stats

from unbackdoor.bench.store import Record

BLOCK = ("data", "network", "attack", "poison_rate", "training", "precision", "clean_size", "budget")
"""Labels that say on what a method was tried; what differs in the seed alone is one block."""

SHARES = ("acc", "asr", "ra", "der")
COSTS = ("seconds", "peak_mb")
DRAWS = 1000
"""Of the bootstrap."""


def cell_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row a cell: kind, labels, metrics, duration, error, machine and key.

    Cells of domains with other labels than `BLOCK`, and so with other figures, are left out.
    """
    rows = [
        {
            "kind": record.kind,
            **record.labels,
            **record.metrics,
            "duration": record.duration,
            "error": record.error,
            "device": record.machine.get("device", ""),
            "unbackdoor": record.machine.get("unbackdoor", ""),
            "key": record.key,
            "run": record.run,
        }
        for record in records
        if set(BLOCK) <= set(record.labels)
    ]
    return pd.DataFrame(rows)


@dataclass(frozen=True, eq=False)
class Trials:
    """What every method reached in every block and seed.

    Attributes:
        methods: their names.
        blocks: one row a block, with the labels of `BLOCK`.
        values: of each share and cost; NaN where there is no cell.
    """

    methods: tuple[str, ...]
    blocks: pd.DataFrame
    values: Mapping[str, Float[np.ndarray, "methods blocks seeds"]]

    def where(self, chosen: Bool[np.ndarray, "blocks"]) -> Trials:
        """Return the trials in some blocks, of the methods that were tried there."""
        tried = ~np.isnan(self.values["der"][:, chosen]).all((1, 2))
        return Trials(
            methods=tuple(method for method, kept in zip(self.methods, tried, strict=True) if kept),
            blocks=self.blocks[chosen],
            values={name: value[tried][:, chosen] for name, value in self.values.items()},
        )


def trials(cells: pd.DataFrame) -> Trials:
    """Return the trials of methods that repair backdoored models; the repair of a clean one has no DER.

    Args:
        cells: finished ones, as `cell_table` gives them, the newest first.
    """
    judged = (cells["kind"] == "purify") & cells["der"].notna() if "der" in cells else cells["kind"] == ""
    cells = newest(cells[judged])
    block, _ = pd.factorize(told_apart(cells, BLOCK))
    method, methods = pd.factorize(cells["method"], sort=True)
    seed, seeds = pd.factorize(cells["seed"])
    values = {}
    for name in (*SHARES, *COSTS):
        values[name] = np.full((len(methods), len(set(block)), len(seeds)), np.nan)
        if name in cells:
            values[name][method, block, seed] = cells[name].astype(float)
    first = np.unique(block, return_index=True)[1]
    blocks = cells[list(BLOCK)].iloc[first].reset_index(drop=True)
    return Trials(tuple(map(str, methods)), blocks, values)


def newest(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the first of the cells that have the same labels: other images under the same name, or other defaults."""
    return cells.drop_duplicates(["kind", *BLOCK, "method", "seed"])


def told_apart(rows: pd.DataFrame, labels: Iterable[str]) -> Shaped[np.ndarray, "rows"]:
    """Return one text a row, equal where all of these labels are: a missing one is a label like any other."""
    named = rows[list(labels)].itertuples(index=False)
    return np.array([" ".join(map(repr, row)) for row in named], dtype=object)


def block_means(values: Float[np.ndarray, "*some seeds"]) -> Float[np.ndarray, "*some"]:
    """Return means over seeds of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Float[np.ndarray, "*some"] = np.where(there, values, 0).sum(-1) / there.sum(-1)
    return means


def mean_of(values: Float[np.ndarray, "blocks seeds"]) -> float | None:
    """Return the mean over blocks, each the mean over its seeds; None if there is nothing."""
    means = block_means(values)
    means = means[~np.isnan(means)]
    return float(means.mean()) if len(means) else None


def seed_interval(values: Float[np.ndarray, "blocks seeds"]) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a mean share over seeds, Student's t; None, None if there is none.

    There is none where a seed lacks blocks that others have: the means of the seeds are then of different things.

    Args:
        values: shares of one method, NaN where there is no cell.
    """
    there = ~np.isnan(values)
    values = values[there.any(1)][:, there.any(0)]
    means = values.mean(0) if len(values) else np.empty(0)
    if len(means) < 2 or np.isnan(means).any():
        return None, None
    half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
    return max(0.0, float(means.mean() - half)), min(1.0, float(means.mean() + half))


def rank_intervals(der: Float[np.ndarray, "blocks methods"], seed: int = 0) -> Float[np.ndarray, "methods 3"]:
    """Return each method's rank by mean DER, 1 the best, and the ends of its 95 % bootstrap interval over blocks.

    Args:
        der: no entry missing.
        seed: of the draws.

    Returns:
        Rank, lower and upper end; with fewer than two blocks the ends are NaN, as nothing can be said.
    """
    ranks = stats.rankdata(-der.mean(0))
    if len(der) < 2:
        return np.stack([ranks, np.full_like(ranks, np.nan), np.full_like(ranks, np.nan)], axis=1)
    drawn = np.random.default_rng(seed).multinomial(len(der), np.full(len(der), 1 / len(der)), size=DRAWS)
    drawn_ranks = stats.rankdata(-(drawn @ der), axis=1)
    low, high = np.percentile(drawn_ranks, [2.5, 97.5], axis=0)
    return np.stack([ranks, low, high], axis=1)
