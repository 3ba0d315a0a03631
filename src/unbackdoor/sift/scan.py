"""SCAn: a class that holds poison is explained far better by two groups than by one.

Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection" (USENIX Security 2021). Features are a mean of their class plus a variation whose covariance S all classes
share. In the units in which S is the identity, each class is divided into two groups; how much they explain is

    J = mean over the rows of ||x - mean||^2 - ||x - mean of its group||^2,

and a class whose J lies more than e^2 scaled median absolute deviations above the median of all classes is held to be
poisoned, with the group that lies further from the clean samples of the class as the poison: the smaller group where
there are no clean samples.

The paper estimates S by expectation maximisation from clean samples. Here it is the covariance within groups, over all
classes, in two rounds: from the classes, then from the groups found with it. With as many rows a class the two agree,
and clean samples are not needed for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import FEWEST, Sifter, Suspicion
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import random_state, robust_z
from unbackdoor.training import Runtime

KEPT = 1e-4
"""Directions in which features vary by less than this share of the largest variance are noise of the arithmetic."""


class Groups(NamedTuple):
    """A class, divided in two.

    Attributes:
        second: whether each row is in the second group, the smaller one.
        posterior: that each row belongs to the second group, 0 to 1.
        gain: J.
    """

    second: Bool[Tensor, "n"]
    posterior: Float[Tensor, "n"]
    gain: float


@dataclass(frozen=True, kw_only=True)
class SCAn(Sifter):
    """Look for classes that two groups explain far better than one.

    Attributes:
        threshold: on the anomaly of a class, in scaled median absolute deviations.
    """

    threshold: float = math.e**2

    uses_clean: ClassVar[bool] = True
    # Of two numbers neither lies further from the median than the other.
    least_classes: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise InputError(f"SCAn: the threshold must be a positive number, found {self.threshold}")

    def inspect(self, seen: Observed) -> Suspicion:
        """Divide each class and compare the classes (see `Sifter.score`)."""
        labels = seen.rows.labels.cpu()
        points, large = whitened(seen.features, labels, seen.rows.classes, seen.runtime)
        found = {c: two_groups(points[rows], random_state(seen.runtime, "scan", c, 1)) for c, rows in large.items()}
        anomalies = dict(zip(found, robust_z(torch.tensor([one.gain for one in found.values()])).tolist()))
        scores = torch.zeros(len(labels))
        poisoned = torch.zeros(len(labels), dtype=torch.bool)
        for c, groups in found.items():
            rows = large[c]
            posterior, second = groups.posterior, groups.second
            if _turned(seen, c, rows, second):
                posterior, second = 1 - posterior, ~second
            scores[rows] = max(anomalies[c], 0.0) * posterior
            poisoned[rows] = second & (anomalies[c] > self.threshold)
        suspects = [c for c in found if anomalies[c] > self.threshold]
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"{len(suspects)} of {seen.rows.classes} classes are two groups rather than one",
            reasons=[f"its class has the anomaly {anomalies.get(label, 0.0):.2f}" for label in labels.tolist()],
            evidence={"anomalies": {str(c): round(value, 4) for c, value in anomalies.items()}},
        )


def _turned(seen: Observed, c: int, rows: Int[Tensor, "m"], second: Bool[Tensor, "m"]) -> bool:
    """Return whether clean samples of the class lie nearer to the second group than to the first."""
    if seen.clean is None or seen.clean_features is None or not bool((seen.clean.labels == c).any()):
        return False
    clean = seen.clean_features[seen.clean.labels.cpu() == c].mean(0)
    first, other = (seen.features[rows[group]].mean(0) for group in (~second, second))
    return bool((clean - other).norm() < (clean - first).norm())


def whitened(
    features: Float[Tensor, "n d"], labels: Int[Tensor, "n"], classes: int, runtime: Runtime
) -> tuple[Float[Tensor, "n k"], dict[int, Int[Tensor, "m"]]]:
    """Return features whitened within groups, and the rows of each class that has `FEWEST` or more.

    The groups are first the classes, and then those in which each class falls apart.
    """
    wide = features.double()
    members = {c: (labels == c).nonzero().squeeze(1) for c in range(classes)}
    large = {c: rows for c, rows in members.items() if len(rows) >= FEWEST}
    if not large:
        return wide, {}
    points = whiten(wide, [rows for rows in members.values() if len(rows)])
    parts = []
    for c, rows in large.items():
        second = two_groups(points[rows], random_state(runtime, "scan", c, 0)).second
        parts += [part for part in (rows[~second], rows[second]) if len(part)]
    return whiten(wide, parts), large


def whiten(features: Float[Tensor, "n d"], parts: list[Int[Tensor, "m"]]) -> Float[Tensor, "n k"]:
    """Return the features in units in which their covariance within the parts is the identity."""
    inner = torch.cat([features[rows] - features[rows].mean(0) for rows in parts])
    values, vectors = torch.linalg.eigh(inner.T @ inner / max(len(inner) - len(parts), 1))
    kept = values > max(KEPT * float(values[-1]), 1e-12)
    scale: Tensor = vectors[:, kept] / values[kept].sqrt()
    return features @ scale


def two_groups(points: Float[Tensor, "n k"], seed: int) -> Groups:
    """Divide the points by k-means; the smaller group is the second."""
    from sklearn.cluster import KMeans

    if bool((points == points[0]).all()):
        return Groups(torch.zeros(len(points), dtype=torch.bool), torch.zeros(len(points)), 0.0)
    assigned = torch.from_numpy(KMeans(2, n_init=4, random_state=seed).fit(points.numpy()).labels_).long()
    second = assigned == int(torch.bincount(assigned, minlength=2).argmin())
    share = float(second.double().mean())
    distances = [(points - points[group].mean(0)).square().sum(1) for group in (~second, second)]
    within = torch.where(second, distances[1], distances[0])
    gain = float(((points - points.mean(0)).square().sum(1) - within).mean())
    log_odds = math.log(share / (1 - share)) + (distances[0] - distances[1]) / 2
    return Groups(second, log_odds.sigmoid().float(), gain)
