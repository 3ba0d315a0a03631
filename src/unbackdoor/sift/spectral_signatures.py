"""Spectral Signatures: poison leaves a large projection on the first singular vector of its class.

Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks" (NeurIPS 2018). With X the features of a class minus their
mean and v the first right singular vector of X, a row's score is (x v)^2. Of each class the rows with the highest
scores, half as many again as poison is expected, are held poisoned: always, also in clean data.

Published code has given each row the singular vector of its own number, and removed rows by the number of their class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.sift.base import Sifter, Suspicion, check_share, extremes
from unbackdoor.sift.observed import Observed

MARGIN = 1.5
"""Times the expected poison that is removed, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class SpectralSignatures(Sifter):
    """Score rows by their projection on the direction in which their class varies most.

    Attributes:
        expected: share of the rows of a class that may be poison; half as much again is held poisoned. Above 0, below
            0.6.
    """

    expected: float = 0.10

    always: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("SpectralSignatures", expected=self.expected, removed=MARGIN * self.expected)

    def inspect(self, seen: Observed) -> Suspicion:
        """Project class by class (see `Sifter.score`)."""
        scores = torch.zeros(len(seen.rows))
        poisoned = torch.zeros(len(seen.rows), dtype=torch.bool)
        ties = seen.runtime.generator("spectral signatures", "ties")
        for c in range(seen.rows.classes):
            rows = seen.of_class(c)
            if len(rows):
                scores[rows] = outlyingness(seen.features[rows])
                poisoned[rows] = extremes(scores[rows], 0.0, MARGIN * self.expected, ties)[1]
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"the {100 * MARGIN * self.expected:g} % of each class that lie furthest out are held poisoned,"
            " by their number alone",
            reasons=[f"squared projection {score:.4g}" for score in scores.tolist()],
        )


def outlyingness(features: Float[Tensor, "n d"]) -> Float[Tensor, "n"]:
    """Return the squared projection of each row, minus the mean, on the first right singular vector."""
    centred = features.double() - features.double().mean(0)
    # The eigenvector of D x D: there are more rows than features.
    direction: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    return (centred @ direction).square().float()
