"""How methods do along an axis, such as the poison rate: over the same settings at each point, for each method."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from unbackdoor.bench.table import BLOCK, Trials, fair, mean_of, told_apart
from unbackdoor.report.leaderboard import Axis, Curve, Kind

AXES: Mapping[str, Axis] = {"poison_rate": "poison rate", "clean_size": "clean samples"}


def curves(tried: Trials, kind: Kind) -> Iterator[Curve]:
    """Yield the curves of methods of one kind.

    A setting is what blocks that differ in the axis alone have in common. What was tried there at two points or more
    counts, and of that what all methods have that have enough of it. Settings that have the same points are taken
    together; those with other points have curves of their own.

    Args:
        tried: blocks and methods.
        kind: of the methods, for the page.
    """
    for label, axis in AXES.items():
        points = pd.to_numeric(tried.blocks[label]).to_numpy(dtype=float)
        if len(np.unique(points[~np.isnan(points)])) < 2:
            continue
        settings, _ = pd.factorize(told_apart(tried.blocks, [name for name in BLOCK if name != label]))
        several = _several(tried, points, settings)
        if not several.methods:
            continue
        compared, ranked = fair(several)
        alike = _alike(compared.there[ranked].all(0), points, settings) if len(ranked) else {}
        for at, (cells, count) in alike.items():
            for method in ranked.tolist():
                means = [_means(compared, method, cells & (points == x)[:, None]) for x in at]
                yield Curve(
                    kind=kind,
                    axis=axis,
                    method=compared.methods[method],
                    settings=count,
                    points=list(zip(at, means, strict=True)),
                )


def _several(tried: Trials, points: Float[np.ndarray, "blocks"], settings: Int[np.ndarray, "blocks"]) -> Trials:
    """Leave of each method and seed what was tried at two points of a setting or more.

    Of the methods those are left that have at least half as many such cells as the one with most: what all have in
    common would be little otherwise.
    """
    there = tried.there & ~np.isnan(points)[None, :, None]
    # By setting first, then method and seed.
    counts = np.zeros((settings.max(initial=-1) + 1, there.shape[0], there.shape[2]), dtype=int)
    np.add.at(counts, settings, there.swapaxes(0, 1).astype(int))
    kept = there & (counts[settings] >= 2).swapaxes(0, 1)
    count = kept.sum((1, 2))
    enough = (count > 0) & (2 * count >= count.max(initial=0))
    values = {name: np.where(kept, value, np.nan)[enough] for name, value in tried.values.items()}
    return replace(tried, methods=tuple(itertools.compress(tried.methods, enough)), values=values)


def _alike(
    common: Bool[np.ndarray, "blocks seeds"], points: Float[np.ndarray, "blocks"], settings: Int[np.ndarray, "blocks"]
) -> dict[tuple[float, ...], tuple[Bool[np.ndarray, "blocks seeds"], int]]:
    """Return, by the points that they have, where the cells of settings are, and how many settings.

    Of the seeds of a setting those count that have all of its points: the ones that the seed with most points has.
    """
    found: dict[tuple[float, ...], tuple[Bool[np.ndarray, "blocks seeds"], int]] = {}
    rows_of: dict[int, list[int]] = defaultdict(list)
    for row, setting in enumerate(settings):
        rows_of[setting].append(row)
    for rows in rows_of.values():
        there = common[rows]
        most = there[:, there.sum(0).argmax()]
        if most.sum() < 2:
            continue
        at = tuple(sorted(points[rows][most].tolist()))
        cells, count = found.get(at, (np.zeros_like(common), 0))
        cells[rows] |= there & most[:, None] & there[most].all(0)
        found[at] = cells, count + 1
    return dict(sorted(found.items()))


def _means(tried: Trials, method: int, cells: Bool[np.ndarray, "blocks seeds"]) -> dict[str, float]:
    means: dict[str, float] = {}
    for name in tried.judged.figures:
        values = tried.values[name][method]
        # A figure that some of the cells lack would be one of other settings here than at other points.
        if not np.isnan(values[cells]).any() and (mean := mean_of(np.where(cells, values, np.nan))) is not None:
            means[name] = mean
    return means
