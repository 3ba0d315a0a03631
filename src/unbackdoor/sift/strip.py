"""STRIP: a triggered image keeps its class whatever image is laid over it.

Gao, Xu, Wang, Chen, Ranasinghe, Nepal, "STRIP: A Defence Against Trojan Attacks on Deep Neural Networks" (ACSAC 2019).
An image is added to others, one after the other, and cut off at white; the score is minus the mean entropy of the
answers. The threshold is the entropy below which one clean image in a hundred falls: counted on clean samples where
there are any, otherwise that of a Gaussian with the rows' own median and median absolute deviation.

Made for images that come in at test time; here the rows of the training data themselves are both what is asked about
and what is laid over.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion, check_share
from unbackdoor.sift.observed import Observed, run_over
from unbackdoor.sift.robust import robust_z


@dataclass(frozen=True, kw_only=True)
class STRIP(Sifter):
    """Score rows by how sure the model stays of their class under other images.

    Attributes:
        overlays: images laid over each row, 1 or more.
        false_alarms: share of clean rows that may be held poisoned.
    """

    overlays: int = 100
    false_alarms: float = 0.01

    uses_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("STRIP", false_alarms=self.false_alarms)
        if self.overlays < 1:
            raise InputError(f"STRIP: overlays must be 1 or more, found {self.overlays}")

    def inspect(self, seen: Observed) -> Suspicion:
        """Overlay, ask, and hold the surest answers poisoned (see `Sifter.score`)."""
        scores = -self.entropies(seen, seen.rows.images, "rows")
        if seen.clean is not None:
            usual = -self.entropies(seen, seen.clean.images, "clean samples")
            poisoned = scores > usual.double().quantile(1 - self.false_alarms)
        else:
            poisoned = robust_z(scores) > NormalDist().inv_cdf(1 - self.false_alarms)
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"{int(poisoned.sum())} rows keep their class under other images",
            reasons=[f"entropy {-score:.3f} under other images" for score in scores.tolist()],
        )

    def entropies(self, seen: Observed, images: UInt8[Tensor, "n c h w"], name: str) -> Float[Tensor, "n"]:
        """Return the mean entropy of each image's answers, in nats."""
        pool = seen.rows.images
        generator = seen.runtime.generator("strip", name)
        total = torch.zeros(len(images))
        head = seen.head(seen.model)

        def overlaid(batch: Float[Tensor, "b c h w"], part: slice) -> Float[Tensor, "b c h w"]:
            others = pool[torch.randint(len(pool), (len(batch),), generator=generator)]
            return (batch + others.to(batch.device).float() / 255).clamp(max=1)

        for number in range(self.overlays):
            description = f"STRIP: {name}, overlay {number + 1}"
            total += entropy(run_over(seen.model, head, images, seen.runtime, description, overlaid)[1])
        return total / self.overlays


def entropy(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n"]:
    """Return the entropy of the softmax of each row, in nats."""
    logs = logits.log_softmax(1)
    return -(logs.exp() * logs).sum(1)
