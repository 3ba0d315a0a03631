"""Order statistics of more scores than fit into memory: exact, in two passes and with some tables of 65,536 counts.

The bits of single-precision numbers, read as whole numbers, are in the order of the numbers themselves once the sign is
taken care of. The first pass counts how many scores share their upper 16 bits, which tells in which of these groups a
rank lies; the second counts the lower 16 bits of the groups that are asked for. Counts of several files add up, in any
order, and nothing is drawn or estimated. Sketches of quantiles (KLL, t-digest) take one pass and estimate: their error
is a share of all rows, and the shares that are asked for can be one in a hundred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float32, UInt32

HALF = 16
"""Bits that a pass looks at."""

Scores = Callable[[], Iterable[Float32[np.ndarray, "m"]]]
"""Begins a pass over all scores, which come in parts."""


def values_at(ranks: Sequence[int], scores: Scores) -> list[float]:
    """Return the scores at some ranks, that of the lowest being 0.

    Args:
        ranks: wanted ones, each below the number of scores.
        scores: finite ones; it is called twice, and must give the same both times.
    """
    upper = np.zeros(2**HALF, np.int64)
    for part in scores():
        upper += np.bincount(ordered(part) >> HALF, minlength=2**HALF)
    ends = upper.cumsum()
    groups = np.searchsorted(ends, ranks, side="right")
    lower = {int(group): np.zeros(2**HALF, np.int64) for group in groups}
    for part in scores():
        numbers = ordered(part)
        for group in lower:
            inside = numbers[numbers >> HALF == group] & (2**HALF - 1)
            lower[group] += np.bincount(inside, minlength=2**HALF)
    found = []
    for rank, group in zip(ranks, groups.tolist()):
        before = ends[group] - upper[group]
        low = int(np.searchsorted(lower[group].cumsum(), rank - before, side="right"))
        found.append(group << HALF | low)
    return [float(score) for score in scores_of(np.array(found, np.uint32))]


def ordered(scores: Float32[np.ndarray, "m"]) -> UInt32[np.ndarray, "m"]:
    """Return whole numbers in the order of the scores; 0 and minus 0 are one."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    sign = np.uint32(2**31)
    return np.where(bits & sign, ~bits, bits | sign)


def scores_of(numbers: UInt32[np.ndarray, "m"]) -> Float32[np.ndarray, "m"]:
    """Return the scores of which `ordered` made these numbers."""
    sign = np.uint32(2**31)
    return np.where(numbers & sign, numbers ^ sign, ~numbers).view(np.float32)
