"""How far two measurements of the same neurons agree, and how unevenly one is spread over them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

CONFIDENCE = 0.95
"""Of intervals."""


def correlations(one: Float[Tensor, "n"], other: Float[Tensor, "n"]) -> tuple[float, float]:
    """Return Pearson's and Spearman's correlation, -1 to 1; NaN for fewer than 3 values or for values all alike."""
    from scipy.stats import pearsonr, spearmanr

    a, b = one.cpu().double().numpy(), other.cpu().double().numpy()
    if len(a) < 3 or a.min() == a.max() or b.min() == b.max():
        return math.nan, math.nan
    return float(pearsonr(a, b).statistic), float(spearmanr(a, b).statistic)


def top_overlap(one: Float[Tensor, "n"], other: Float[Tensor, "n"], share: float) -> float:
    """Return which part of the largest values of one stand where the largest of the other do, 0 to 1.

    Args:
        one: values.
        other: values of the same things.
        share: of all values that count as largest, above 0 and at most 1; at least one does, and ties go by order.
    """
    return float((_largest(one, share) & _largest(other, share)).sum()) / _count(len(one), share)


def chance_overlap(one: Sequence[Float[Tensor, "n"]], other: Sequence[Float[Tensor, "n"]], share: float) -> float:
    """Return the overlap that is expected if only the layers agree: as many largest in each, anywhere in it.

    Args:
        one: values of each layer.
        other: values of the same layers.
        share: as in `top_overlap`.
    """
    sizes = [len(layer) for layer in one]
    first, second = (
        [int(part.sum()) for part in torch.split(_largest(torch.cat(list(layers)), share), sizes)]
        for layers in (one, other)
    )
    both = sum(a * b / size for a, b, size in zip(first, second, sizes))
    return both / _count(sum(sizes), share)


def _count(values: int, share: float) -> int:
    # A hair more: 0.3 * 10 is less than 3 to a computer.
    return max(1, int(share * values + 1e-9))


def _largest(values: Float[Tensor, "n"], share: float) -> Tensor:
    chosen = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    chosen[values.sort(descending=True, stable=True).indices[: _count(len(values), share)]] = True
    return chosen


def gini(values: Float[Tensor, "n"]) -> float:
    """Return the Gini coefficient of values of 0 or more: 0 if all are alike, nearly 1 if one has all; NaN for zeros.

    G = 2 sum_i i x_(i) / (n sum_i x_(i)) - (n + 1) / n, over ascending values.
    """
    ascending = values.double().sort().values
    count, total = len(ascending), float(ascending.sum())
    if not total > 0:
        return math.nan
    ranks = torch.arange(1, count + 1, dtype=torch.float64, device=ascending.device)
    return 2 * float((ranks * ascending).sum()) / (count * total) - (count + 1) / count


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean of the values with Student's 95 % interval; the ends are NaN for a single value."""
    from scipy.stats import t

    numbers = torch.tensor(values, dtype=torch.float64)
    mean = float(numbers.mean())
    if len(numbers) < 2:
        return {"value": mean, "low": math.nan, "high": math.nan}
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(numbers) - 1)) * float(numbers.std()) / math.sqrt(len(numbers))
    return {"value": mean, "low": mean - half, "high": mean + half}
