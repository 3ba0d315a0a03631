"""SPECTRE: like Spectral Signatures, after whitening by a robust estimate of what the clean rows look like.

Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics" (ICML 2021). The
features of a class are projected on their first k principal components, whitened by robust estimates of mean and
covariance, and scored by quantum entropy: with C the covariance of the whitened rows,

    Q = exp( alpha (C - I) / (||C||_2 - 1) ),    score(x) = x^T Q x / trace(Q).

k is that for which the mean score is largest. As in the paper half as many rows again as poison is expected are held
poisoned, but of each class: the paper takes them of the target class, which it finds as the one with the largest score.

The robust estimates are the minimum covariance determinant (Rousseeuw and Van Driessen, 1999) of scikit-learn, not the
paper's filter, which needs the number of poisoned rows and published code that runs in Julia.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion, check_share, extremes
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import random_state
from unbackdoor.sift.spectral_signatures import MARGIN

ROWS_A_DIMENSION = 5
"""Rows that the robust covariance needs for each dimension at least."""


@dataclass(frozen=True, kw_only=True)
class SPECTRE(Sifter):
    """Whiten each class robustly and score rows by quantum entropy.

    Attributes:
        expected: share of the rows of a class that may be poison; half as much again is held poisoned. Above 0, below
            0.6.
        dimensions: numbers of principal components that are tried.
        alpha: of the quantum entropy; 0 weighs all directions alike, a large one only the first.
    """

    expected: float = 0.10
    dimensions: tuple[int, ...] = (2, 8, 32)
    alpha: float = 4.0

    always: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("SPECTRE", expected=self.expected, removed=MARGIN * self.expected)
        if not self.dimensions or min(self.dimensions) < 1 or not 0 <= self.alpha < math.inf:
            raise InputError(
                f"SPECTRE: dimensions must be 1 or more and alpha 0 or more, found {self.dimensions} and {self.alpha}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Whiten and score class by class (see `Sifter.score`)."""
        scores = torch.zeros(len(seen.rows))
        poisoned = torch.zeros(len(seen.rows), dtype=torch.bool)
        ties = seen.runtime.generator("spectre", "ties")
        means = {}
        with seen.runtime.progress.bar("SPECTRE: classes", seen.rows.classes) as advance:
            for c in range(seen.rows.classes):
                rows = seen.of_class(c)
                advance()
                found = self.of_class(seen.features[rows], random_state(seen.runtime, "spectre", c))
                if found is None:
                    continue
                scores[rows] = found
                poisoned[rows] = extremes(found, 0.0, MARGIN * self.expected, ties)[1]
                means[str(c)] = round(float(found.mean()), 4)
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"the {100 * MARGIN * self.expected:g} % of each class that lie furthest out are held poisoned,"
            " by their number alone",
            reasons=[f"quantum entropy {score:.4g}" for score in scores.tolist()],
            evidence={"mean_scores": means},
        )

    def of_class(self, features: Float[Tensor, "n d"], seed: int) -> Float[Tensor, "n"] | None:
        """Return the scores of a class at the best number of components, or None where there are too few rows."""
        array = features.double().numpy()
        if len(array) < 2 * ROWS_A_DIMENSION:
            return None
        _, lengths, directions = np.linalg.svd(array - array.mean(0), full_matrices=False)
        rank = int((lengths > 1e-6 * max(lengths[0], 1e-12)).sum()) if lengths[0] > 1e-9 else 0
        tried = {min(k, rank, len(array) // ROWS_A_DIMENSION) for k in self.dimensions} - {0}
        scored = [quantum_entropy(whitened(array @ directions[:k].T, seed), self.alpha) for k in sorted(tried)]
        return max(scored, key=lambda one: float(one.mean()), default=None)


def whitened(points: np.ndarray, seed: int) -> Float[Tensor, "n k"]:
    """Return the points minus a robust mean, in units in which a robust covariance is the identity.

    Both are the plain ones where most points are the same, of which nothing robust can be computed.
    """
    from sklearn.covariance import EmpiricalCovariance, MinCovDet

    with warnings.catch_warnings():
        # Of a determinant that rises by rounding: the estimate before is kept.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            estimate = MinCovDet(random_state=seed).fit(points)
        except ValueError:
            # Where more than half of the rows are one and the same, their covariance is 0, and not to be divided by.
            estimate = EmpiricalCovariance().fit(points)
    values, vectors = np.linalg.eigh(estimate.covariance_)
    scale = vectors / np.sqrt(np.maximum(values, 1e-6 * values[-1]))
    return torch.from_numpy((points - estimate.location_) @ scale)


def quantum_entropy(points: Float[Tensor, "n k"], alpha: float) -> Float[Tensor, "n"]:
    """Return x^T Q x / trace(Q) of each whitened point, Q as in the module's docstring."""
    points = points.double()
    size = points.shape[1]
    covariance = torch.cov(points.T).reshape(size, size)
    excess = covariance - torch.eye(size, dtype=torch.float64)
    # The norm minus one is what the largest direction has beyond the identity; without any, all weigh alike.
    beyond = float(torch.linalg.matrix_norm(covariance, 2)) - 1
    weights = torch.linalg.matrix_exp(alpha * excess / beyond) if beyond > 1e-9 else torch.eye(size).double()
    return (((points @ weights) * points).sum(1) / weights.trace()).float()
