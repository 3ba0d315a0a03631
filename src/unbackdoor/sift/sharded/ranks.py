"""Order statistics of more scores than fit into memory: exact, in four passes and with some tables of 65,536 counts.

The bits of single-precision numbers, read as whole numbers, are in the order of the numbers themselves once the sign is
taken care of. A lot of 32 bits below them puts rows of equal scores in an order, too, so that a share of the rows can
be cut off at any score; without it no threshold could lie at a score that a fifth of all rows have. The first pass
counts how many keys share their upper 16 bits, which tells in which of these groups a rank lies; each further pass
counts the next 16 bits of the groups that are asked for. Counts of several files add up, in any order, and nothing is
estimated. Sketches of quantiles (KLL, t-digest) take one pass and estimate: their error is a share of all rows, and the
shares that are asked for can be one in a hundred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt32, UInt64

BITS = 16
"""That a pass looks at."""

LOT = np.uint64(32)
"""Bits of a key that tell rows of equal scores apart; the score lies above them."""

Keys = Callable[[], Iterable[UInt64[np.ndarray, "m"]]]
"""Begins a pass over all keys, which come in parts."""


class Placed(NamedTuple):
    """What lies at a rank.

    Attributes:
        key: of the row there, see `keys_of`.
        ties: rows that have its score, itself among them.
    """

    key: int
    ties: int

    @property
    def score(self) -> float:
        """The score of the row there."""
        return float(scores_of(np.array([self.key >> int(LOT)], np.uint32))[0])


def at_ranks(ranks: Sequence[int], keys: Keys) -> list[Placed]:
    """Return what lies at some ranks, that of the lowest key being 0.

    Args:
        ranks: wanted ones, each below the number of keys.
        keys: of all rows; it is called four times, and must give the same each time.
    """
    left, found, ties = list(ranks), [0] * len(ranks), [0] * len(ranks)
    for shift in (48, 32, 16, 0):
        counts = {group: np.zeros(2**BITS, np.int64) for group in found}
        for part in keys():
            upper = part >> np.uint64(shift)
            groups = upper >> np.uint64(BITS)
            for group in counts:
                inside = upper[groups == np.uint64(group)] & np.uint64(2**BITS - 1)
                counts[group] += np.bincount(inside.astype(np.int64), minlength=2**BITS)
        for number, group in enumerate(found):
            ends = counts[group].cumsum()
            digit = int(np.searchsorted(ends, left[number], side="right"))
            size = int(counts[group][digit])
            left[number] -= int(ends[digit]) - size
            found[number] = group << BITS | digit
            if shift == LOT:
                ties[number] = size
    return [Placed(key, tied) for key, tied in zip(found, ties)]


def chance_of(shard: str, seed: int) -> np.random.PCG64:
    """Return what draws the lots of a shard's rows, from the first on: the same whatever other shards there are."""
    return np.random.PCG64(int.from_bytes(hashlib.sha256(repr((seed, shard)).encode()).digest()))


def keys_of(scores: Float32[np.ndarray, "m"], chance: np.random.PCG64) -> UInt64[np.ndarray, "m"]:
    """Return whole numbers in the order of the scores, and of equal scores in the order of lots.

    Args:
        scores: finite ones, of a shard's next rows.
        chance: see `chance_of`; it goes on by as many lots.
    """
    return ordered(scores).astype(np.uint64) << LOT | chance.random_raw(len(scores)) >> LOT


def ordered(scores: Float32[np.ndarray, "m"]) -> UInt32[np.ndarray, "m"]:
    """Return whole numbers in the order of the scores; 0 and minus 0 are one."""
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)
    sign = np.uint32(2**31)
    return np.where(bits & sign, ~bits, bits | sign)


def scores_of(numbers: UInt32[np.ndarray, "m"]) -> Float32[np.ndarray, "m"]:
    """Return the scores of which `ordered` made these numbers."""
    sign = np.uint32(2**31)
    return np.where(numbers & sign, numbers ^ sign, ~numbers).view(np.float32)
