"""Robust outliers among a handful of numbers."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

GAUSSIAN = 1.4826
"""Scales the median absolute deviation to the standard deviation of a Gaussian."""


def low_outliers(values: Float[Tensor, "n"], least: float = 0.0) -> Float[Tensor, "n"]:
    """Return how many scaled median absolute deviations each value lies below the median (negative: above it).

    The median of an even number of values is the mean of the middle two. A spread below a millionth of the median
    counts as that, so that identical values are no outliers and a division by zero cannot happen.

    Args:
        values: one a class, say.
        least: spread that is not fallen below, where smaller ones mean nothing.

    Source: Hampel (1974); the anomaly index of Wang et al. (IEEE S&P 2019), with its sign.
    """
    median = values.quantile(0.5)
    spread = GAUSSIAN * (values - median).abs().quantile(0.5)
    return (median - values) / spread.clamp_min(1e-6 * median.abs().clamp_min(1e-6)).clamp_min(least)
