"""How well a sifter tells poisoned rows from clean ones.

As in `evaluate`, the mask of the poisoned rows meets what a method said here, afterwards, and not in any method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from unbackdoor.attacks.base import CLEAN, POISON
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Proportion
from unbackdoor.sift import Suspicion

FALSE_ALARMS = 0.01
"""Share of the clean rows above which the score stands by which `Detection.tpr_at_1` judges."""

DEVIATIONS = 1.96
"""Standard errors on either side of an area: a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """The area under the curve of true over false positives, with DeLong's 95 % interval.

    Where the scores separate the rows without error, DeLong's interval has no width; that says nothing of other data.

    Attributes:
        value: the chance that a poisoned row has a higher score than a clean one, 0 to 1.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How well a sifter did; rows that carry the trigger with their true label ("covers") do not count.

    Attributes:
        held: share of all rows that the sifter holds poisoned.
        fpr: share of the clean rows that it holds poisoned; None if there is none.
        tpr: share of the poisoned rows that it holds poisoned; None if there is none.
        auroc: of its scores; None unless there are rows of both kinds.
        tpr_at_1: share of the poisoned rows whose score lies above that of all but 1 % of the clean rows; None unless
            there are rows of both kinds. Its interval leaves out that the threshold is from a sample too.
    """

    held: Proportion
    fpr: Proportion | None = None
    tpr: Proportion | None = None
    auroc: Area | None = None
    tpr_at_1: Proportion | None = None

    def to_metrics(self) -> dict[str, float]:
        """Return what was measured and the ends of the intervals, by name."""
        measured = {
            "held": self.held,
            "fpr": self.fpr,
            "tpr": self.tpr,
            "auroc": self.auroc,
            "tpr_at_1": self.tpr_at_1,
        }
        found: dict[str, float] = {}
        for name, share in measured.items():
            if share is not None:
                found |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
        return found


def detection(found: Suspicion, kinds: UInt8[Tensor, "n"] | None) -> Detection:
    """Compare what a sifter said with what the rows are.

    Args:
        found: its answer.
        kinds: of each row, see `FittedAttack`; None: all rows are clean.

    Raises:
        InputError: another number of rows.
    """
    kinds = torch.zeros(len(found), dtype=torch.uint8) if kinds is None else kinds.cpu()
    if kinds.shape != found.scores.shape:
        raise InputError(f"{len(found)} rows were sifted, but what they are is known of {len(kinds)}")
    poisoned, clean = kinds == POISON, kinds == CLEAN
    scores, held = found.scores.cpu(), found.poisoned.cpu()
    both = bool(poisoned.any()) and bool(clean.any())
    return Detection(
        held=Proportion(int(held.sum()), len(held)),
        fpr=_share(held[clean]),
        tpr=_share(held[poisoned]),
        auroc=auroc(scores[poisoned], scores[clean]) if both else None,
        tpr_at_1=_share(scores[poisoned] > threshold(scores[clean], FALSE_ALARMS)) if both else None,
    )


def _share(held: Bool[Tensor, "m"]) -> Proportion | None:
    return Proportion(int(held.sum()), len(held)) if len(held) else None


def threshold(clean: Float[Tensor, "m"], share: float) -> float:
    """Return the lowest score above which no more than that share of the clean rows, one row or more, lies.

    Args:
        clean: scores of the clean rows.
        share: 0 or more and below 1.
    """
    # A hair more, as 0.01 of 300 is 3 and in binary a little less.
    above = math.floor(share * len(clean) + 1e-9)
    return float(clean.sort(descending=True).values[above])


def auroc(poisoned: Float[Tensor, "p"], clean: Float[Tensor, "q"]) -> Area:
    """Return the area under the curve; equal scores count half.

    DeLong, DeLong, Clarke-Pearson (Biometrics 1988), by ranks (Sun and Xu, IEEE Signal Processing Letters 2014).

    Args:
        poisoned: scores of poisoned rows, one or more.
        clean: scores of clean rows, one or more.
    """
    from scipy.stats import rankdata

    high, low = poisoned.double().numpy(), clean.double().numpy()
    ranks = rankdata(np.concatenate([high, low]))
    # For each row the share of the other kind that lies on its right side.
    above = (ranks[: len(high)] - rankdata(high)) / len(low)
    below = 1 - (ranks[len(high) :] - rankdata(low)) / len(high)
    value = float(above.mean())
    error = math.sqrt(_variance(above) / len(above) + _variance(below) / len(below))
    low_end, high_end = value - DEVIATIONS * error, value + DEVIATIONS * error
    return Area(value=value, low=max(0.0, low_end), high=min(1.0, high_end))


def _variance(values: np.ndarray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0
