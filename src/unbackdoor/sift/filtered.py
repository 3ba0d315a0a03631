"""From the scores of a filter to an answer: which images carry a trigger, and do more than chance explains?

Clean images that are new to the model say what is usual. An image's p-value is its rank among them, so a clean one is
held triggered with a probability of at most the rate of false alarms, whatever the filter is (Vovk, Gammerman, Shafer,
"Algorithmic Learning in a Random World", 2005).

That share of clean images is held triggered too, so single ones accuse nobody. If all m images were clean, of n clean
ones to compare with and the k-th highest score of these as the threshold, the share above it would be drawn from
Beta(k, n + 1 - k), and how many of m are above it is beta-binomial (Wilks, "Determination of sample sizes for setting
tolerance limits", 1941). Ties among the scores make it fewer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unbackdoor.conformal import allowed_above
from unbackdoor.errors import InputError

SURE = 0.01
"""The images as a whole are called triggered if chance explains so many held ones at most so often."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Filtered:
    """What is said of images that came in.

    Attributes:
        scores: of each, from its filter.
        p_values: share of clean images that are at least as suspicious, each image counted among them; above 0.
        triggered: whether each is held to carry a trigger.
        false_alarms: share of clean images that may be held so.
        by_chance: probability of so many held images or more, if all were clean.
        too_coarse: whether more clean images than that share have the highest score that there is, so that no image can
            be held.
    """

    scores: Float[Tensor, "n"]
    p_values: Float[Tensor, "n"]
    triggered: Bool[Tensor, "n"]
    false_alarms: float
    by_chance: float
    too_coarse: bool

    @property
    def verdict(self) -> bool | None:
        """Whether more images are held triggered than chance explains; None: the scores are too coarse to tell."""
        return None if self.too_coarse else self.by_chance <= SURE


def allowed_of(clean: int, false_alarms: float) -> int:
    """Return how many of the clean images and the one looked at may have a score as high as its own, 1 or more.

    Args:
        clean: how many clean images there are.
        false_alarms: share of clean images that may be held triggered, above 0 and below 1.

    Raises:
        InputError: no such share, or too few clean images for it.
    """
    if not 0 < false_alarms < 1:
        raise InputError(f"the share of false alarms lies above 0 and below 1, found {false_alarms}")
    allowed = allowed_above(false_alarms, clean)
    if not allowed:
        raise InputError(
            f"{clean} clean images allow a share of false alarms of {1 / (1 + clean):.3g} or more, found"
            f" {false_alarms:g}; give more clean images, or raise it"
        )
    return allowed


def compared_with_clean(
    scores: Float[Tensor, "n"], clean: Float[Tensor, "m"], false_alarms: float, highest: float | None = None
) -> Filtered:
    """Say which images are triggered.

    Args:
        scores: of the images, one or more.
        clean: of clean images, by the same filter.
        false_alarms: share of clean images that may be held triggered, above 0 and below 1.
        highest: score that an image can have; None: there is none.

    Raises:
        InputError: see `allowed_of`.
    """
    from scipy.stats import betabinom

    allowed = allowed_of(len(clean), false_alarms)
    ascending = clean.double().sort().values
    below = torch.searchsorted(ascending, scores.double(), right=False)
    p_values = (1 + len(clean) - below).double() / (1 + len(clean))
    triggered = p_values <= false_alarms + 1e-12
    held = int(triggered.sum())
    chance = float(betabinom.sf(held - 1, len(scores), allowed, len(clean) + 1 - allowed))
    return Filtered(
        scores=scores,
        p_values=p_values,
        triggered=triggered,
        false_alarms=false_alarms,
        by_chance=min(1.0, chance),
        too_coarse=highest is not None and int((clean >= highest).sum()) >= allowed,
    )
