"""Cells as tables: one row a cell, and what every method reached in every block and seed, from which all means come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from unbackdoor.bench.given import THERE
from unbackdoor.bench.rating import rating
from unbackdoor.bench.store import Record

BLOCK = ("data", "network", "attack", "poison_rate", "training", "precision", "clean_size", "budget")
"""Labels that say on what a method was tried; what differs in the seed alone is one block."""

COSTS = ("seconds", "peak_mb", "peak_gpu_mb")
MACHINE = ("device", "threads", "host", "unbackdoor", "torch")
"""Of what a cell ran on and with, that the table tells."""

DRAWS = 1000
"""Of the bootstrap."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """How the cells of one kind are judged.

    Attributes:
        kind: of the cells.
        needed: the figure without which a cell says nothing of a method.
        figures: all that methods are compared by.
        best: the figure by which they are ranked; higher is better.
        own_clean: whether clean samples are the method's affair, as some need them and others do without, and not one
            of the things that all of its kind are tried on.
    """

    kind: str
    needed: str
    figures: tuple[str, ...]
    best: str
    own_clean: bool = False


REPAIRED = Judged(kind="purify", needed="der", figures=("acc", "asr", "ra", "der"), best="der")
"""Repairs of clean models have no DER."""

SECURED = Judged(
    kind="secure",
    needed="asr",
    figures=("acc", "asr", "ra", "der", "mse_clean", "mse_triggered"),
    best="der",
    own_clean=True,
)
"""There is a DER where a model was trained on the same data without a defence."""

SIFTED = Judged(kind="sift", needed="auroc", figures=("auroc", "tpr_at_1", "tpr", "fpr"), best="auroc", own_clean=True)


def cell_table(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row a cell: kind, labels, metrics, duration, error, what it ran on and with, and key.

    Cells of domains with other labels than `BLOCK`, and so with other figures, are left out. Models that were trained
    securely get their DER, where there is one that was trained without a defence (see `rate`).
    """
    rows = [
        {
            "kind": record.kind,
            **record.labels,
            **record.metrics,
            "duration": record.duration,
            "error": record.error,
            **{name: record.machine.get(name, "") for name in MACHINE},
            "commit": record.commit,
            "key": record.key,
            "run": record.run,
        }
        for record in records
        if set(BLOCK) <= set(record.labels)
    ]
    rate(rows)
    return pd.DataFrame(rows)


def rate(rows: Iterable[dict[str, Any]]) -> None:
    """Add the DER to models that were trained securely: beside the newest victim of the same attack and seed.

    There is none where such victims were trained in different ways, as a secure training belongs to none of them.

    Args:
        rows: kind, labels, metrics and error of cells, the newest first.
    """
    for row, before in _beside_victims(rows):
        if len(before) == 1:
            (victim,) = before.values()
            row.update(rating(victim, row))


def unrated(cells: pd.DataFrame) -> int:
    """Return how many models that were trained securely have no DER as their victims were trained in different ways."""
    # Missing labels are equal, which NaN is not.
    rows = cells.astype(object).where(cells.notna(), None).to_dict("records")
    return sum(len(before) > 1 for _, before in _beside_victims(rows))


def _beside_victims(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Yield models that were trained securely, each with the newest victim of each training (see `rate`)."""
    undefended: dict[Hashable, dict[str, dict[str, Any]]] = defaultdict(dict)
    secured = []
    for row in rows:
        if not row.get("error") and row.get("asr") is not None:
            if row["kind"] == "victim":
                undefended[_place(row)].setdefault(str(row["training"]), row)
            elif row["kind"] == SECURED.kind:
                secured.append(row)
    for row in secured:
        yield row, undefended.get(_place(row), {})


def _place(row: Mapping[str, Any]) -> Hashable:
    """Return what a victim and a model that was trained securely have in common."""
    training = row["training"]
    given = training if isinstance(training, str) and training.startswith(THERE) else None
    return (given, *(row[name] for name in ("data", "network", "attack", "poison_rate", "precision", "seed")))


@dataclass(frozen=True, eq=False)
class Trials:
    """What every method of one kind reached in every block and seed.

    Attributes:
        judged: which kind.
        methods: their names.
        blocks: one row a block, with the labels of `BLOCK`.
        values: of each figure and cost; NaN where there is no cell.
    """

    judged: Judged
    methods: tuple[str, ...]
    blocks: pd.DataFrame
    values: Mapping[str, Float[np.ndarray, "methods blocks seeds"]]

    @property
    def there(self) -> Bool[np.ndarray, "methods blocks seeds"]:
        """Where there are cells."""
        found: np.ndarray = ~np.isnan(self.values[self.judged.needed])
        return found

    def where(self, chosen: Bool[np.ndarray, "blocks"]) -> Trials:
        """Return the trials in some blocks, of the methods that were tried there."""
        tried = self.there[:, chosen].sum((1, 2)) > 0
        return replace(
            self,
            methods=tuple(method for method, kept in zip(self.methods, tried, strict=True) if kept),
            blocks=self.blocks[chosen],
            values={name: value[tried][:, chosen] for name, value in self.values.items()},
        )


def trials(cells: pd.DataFrame, judged: Judged = REPAIRED) -> Trials:
    """Return the trials of methods of one kind.

    Args:
        cells: finished ones, as `cell_table` gives them, the newest first.
        judged: which kind.
    """
    needed = judged.needed
    chosen = (cells["kind"] == judged.kind) & cells[needed].notna() if needed in cells else cells["kind"] == ""
    cells = newest(cells[chosen])
    if judged.own_clean:
        cells = _with_own_clean(cells)
    block, _ = pd.factorize(told_apart(cells, BLOCK))
    method, methods = pd.factorize(cells["method"], sort=True)
    seed, seeds = pd.factorize(cells["seed"])
    values = {}
    for name in (*judged.figures, *COSTS):
        values[name] = np.full((len(methods), len(set(block)), len(seeds)), np.nan)
        if name in cells:
            values[name][method, block, seed] = cells[name].astype(float)
    first = np.unique(block, return_index=True)[1]
    blocks = cells[list(BLOCK)].iloc[first].reset_index(drop=True)
    return Trials(judged, tuple(map(str, methods)), blocks, values)


def _with_own_clean(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the cells with the clean samples told by the methods' names, where numbers of them differ."""
    sizes = cells["clean_size"]
    if sizes.nunique() > 1:
        told = ["" if pd.isna(size) else f", {size:g} clean samples" for size in sizes]
        cells = cells.assign(method=cells["method"] + told)
    return cells.assign(clean_size=None)


def fair(tried: Trials) -> tuple[Trials, Int[np.ndarray, "ranked"]]:
    """Leave of the methods that can be ranked only what all of them have; return which these are.

    None can be if they have nothing in common, or if of several methods only one has enough cells.
    """
    there = tried.there
    counts = there.sum((1, 2))
    ranked = np.flatnonzero(2 * counts >= counts.max())
    common = there[ranked].all(0)
    if not common.any() or len(ranked) == 1 < len(counts):
        return tried, ranked[:0]
    values = {name: value.copy() for name, value in tried.values.items()}
    for value in values.values():
        value[ranked] = np.where(common, value[ranked], np.nan)
    return replace(tried, values=values), ranked


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
        der: or another figure of which more is better; no entry missing.
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
