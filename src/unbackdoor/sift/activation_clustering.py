"""Activation Clustering: the features of a class that holds poison fall into two clusters.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava, "Detecting Backdoor Attacks on Deep Neural Networks
by Activation Clustering" (SafeAI workshop at AAAI 2019). The features of each class are reduced by independent
component analysis and divided into two clusters by k-means. A class whose clusters are well apart (silhouette) and
unequal in size is held to be poisoned, and its smaller cluster the poison.

The simplest rule, "the smaller cluster of every class is poison", which BackdoorBench has, accuses up to half of any
data, clean ones too; it is not offered. Where more than a third of the rows of a class are poisoned this sifter says
nothing by design, since it cannot tell which cluster is which.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import random_state

SILHOUETTE_ROWS = 2000
"""From which the silhouette of a class is computed, at most: it compares all pairs."""


class Clusters(NamedTuple):
    """The two clusters of a class.

    Attributes:
        margin: of each row: 1 in the middle of the smaller cluster, -1 in that of the larger.
        smaller: whether each row is in the smaller cluster.
        silhouette: -1 to 1; how far the clusters are apart.
    """

    margin: Float[Tensor, "n"]
    smaller: Bool[Tensor, "n"]
    silhouette: float


@dataclass(frozen=True, kw_only=True)
class ActivationClustering(Sifter):
    """Divide the features of each class into two clusters; a small one, far from the other, is suspicious.

    Attributes:
        dimensions: that independent component analysis keeps, 1 or more.
        silhouette: from which on two clusters are apart, -1 to 1.
        largest: share of a class above which the smaller cluster is no poison, 0 to 0.5.
    """

    dimensions: int = 10
    silhouette: float = 0.10
    largest: float = 0.35

    def __post_init__(self) -> None:
        if self.dimensions < 1 or not -1 <= self.silhouette <= 1 or not 0 < self.largest <= 0.5:
            raise InputError(
                "ActivationClustering: dimensions must be 1 or more, silhouette -1 to 1 and largest above 0 to 0.5,"
                f" found {self.dimensions}, {self.silhouette} and {self.largest}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Cluster class by class (see `Sifter.score`)."""
        scores = torch.zeros(len(seen.rows))
        poisoned = torch.zeros(len(seen.rows), dtype=torch.bool)
        found = {}
        for c in range(seen.rows.classes):
            rows = seen.of_class(c)
            clusters = two_clusters(
                seen.features[rows], self.dimensions, random_state(seen.runtime, "activation clustering", c)
            )
            if clusters is None:
                continue
            share = float(clusters.smaller.float().mean())
            # Clusters of equal size or close together are what a class has by nature.
            weight = max(clusters.silhouette, 0.0) * (1 - share)
            scores[rows] = weight * clusters.margin
            suspected = clusters.silhouette >= self.silhouette and share <= self.largest
            poisoned[rows] = clusters.smaller & suspected
            found[str(c)] = {"silhouette": round(clusters.silhouette, 4), "smaller": round(share, 4)}
        suspects = int(torch.bincount(seen.rows.labels.cpu()[poisoned], minlength=1).count_nonzero())
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"{suspects} of {seen.rows.classes} classes have a small cluster apart from the rest",
            reasons=[f"{score:+.3f} towards the smaller cluster of its class" for score in scores.tolist()],
            evidence={"clusters": found},
        )


def two_clusters(features: Float[Tensor, "n d"], dimensions: int, seed: int) -> Clusters | None:
    """Return the two clusters of the features of a class, or None where there are too few different rows."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import silhouette_score

    array = features.double().numpy()
    if len(np.unique(array, axis=0)) < 3:
        return None
    rank = int(np.linalg.matrix_rank(array - array.mean(0)))
    kept = min(dimensions, rank, len(array) - 1)
    with warnings.catch_warnings():
        # Where the components are not quite independent, the clusters are of use all the same.
        warnings.simplefilter("ignore", ConvergenceWarning)
        reduced = FastICA(kept, whiten="unit-variance", random_state=seed).fit_transform(array)
        means = KMeans(2, n_init=10, random_state=seed).fit(reduced)
    inside = means.labels_ == np.bincount(means.labels_, minlength=2).argmin()
    if not inside.any() or inside.all():
        return None
    small, large = (means.cluster_centers_[means.labels_[one][0]] for one in (inside, ~inside))
    to_small, to_large = (np.square(reduced - centre).sum(1) for centre in (small, large))
    some = drawn(means.labels_, seed)
    silhouette = silhouette_score(reduced[some], means.labels_[some])
    return Clusters(
        margin=torch.from_numpy((to_large - to_small) / np.square(small - large).sum()).float(),
        smaller=torch.from_numpy(inside),
        silhouette=float(silhouette),
    )


def drawn(clusters: np.ndarray, seed: int) -> np.ndarray:
    """Return up to `SILHOUETTE_ROWS` rows, of each cluster its share and at least one.

    Args:
        clusters: of each row, its cluster's number.
        seed: decides which.
    """
    share = min(1.0, SILHOUETTE_ROWS / len(clusters))
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
    # Rows of the whole class at random could miss a cluster of a few rows, and one cluster has no silhouette.
    return np.concatenate([generator.choice(rows, max(1, int(share * len(rows))), replace=False) for rows in members])
