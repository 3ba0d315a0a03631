"""Consensus: the poison is the part of a class that lies apart, whose rows move most and were learned first.

Our own combination of three published ideas; it needs no label, rate, target or number of the attack.

1. *Evidence of each row.* How far its features move when the image is turned and shifted (FCT), and how low its loss is
   early in training (loss isolation). Each is replaced by the normal quantile of its rank among all rows, so that the
   two weigh alike whatever their units. Both are noisy row by row.
2. *Parts.* Each class is divided in two in features whitened within groups, as by SCAn. Where a class holds poison, one
   of the parts is it; SCAn cannot tell which, where they are of one size, as at high poison rates. The evidence can.
3. *Apart.* How far the parts of a class lie from each other, in standard deviations within them along the line that
   joins them, where line and middle come from one half of the rows and the distance from the other. A bell curve cut in
   two gives 2.65 whatever its width, and a class that is one thing looks like that in whitened features. SCAn compares
   classes with each other instead, so that it says nothing where there are few.
4. *Suspicion.* The mean evidence of a part. Where it speaks for poison, and both kinds are stronger than in the other
   part of the class, it is multiplied by the square of how many times further apart the class lies than a bell curve.
   Rows share that of their part, and their own evidence ranks them within it.
5. *Rule.* A part is held poisoned where three things agree: its rows move more than usual, they were learned earlier
   than usual, and its class lies apart, to a product above a threshold. Each by itself is true of clean rows too, such
   as half of a class that is easy. Rows with a score below 0 are held clean, and the rest is undecided.

The poison of an all-to-all attack moves more, but is learned later than the clean rows: its kinds disagree, and hardly
any of it is held poisoned.

The threshold comes from runs on 5,000 images, by `benchmarks/consensus_thresholds.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion
from unbackdoor.sift.fct import FCT
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import random_state
from unbackdoor.sift.scan import whitened

OWN = 0.1
"""Weight of a row's own evidence beside that of its part."""

BELL = 2 * math.sqrt(2 / (math.pi - 2))
"""How far the two halves of a bell curve lie apart, in standard deviations within them: 2.65."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the two parts of a class, and what speaks against it.

    Attributes:
        label: the class.
        members: rows, in increasing order.
        movement: mean normal score of how far their features move.
        loss: mean normal score of how early they were learned.
        apart: of the class: see `cut`.
        ahead: whether both movement and loss are larger than those of the other part.
    """

    label: int
    members: Int[Tensor, "m"]
    movement: float
    loss: float
    apart: float
    ahead: bool

    @property
    def evidence(self) -> float:
        """Mean of movement and loss."""
        return (self.movement + self.loss) / 2

    @property
    def suspicion(self) -> float:
        """The evidence, larger where it speaks for poison and the class lies apart."""
        return self.evidence * (max(self.apart / BELL, 1) ** 2 if self.evidence > 0 and self.ahead else 1)

    def accused(self, threshold: float) -> bool:
        """Return whether the part is held poisoned under this threshold (see `Consensus`)."""
        return self.suspicion > threshold and min(self.movement, self.loss) > 0


@dataclass(frozen=True, kw_only=True)
class Consensus(Sifter):
    """Hold a part of a class poisoned where movement, loss and distance all say so; the default.

    Attributes:
        threshold: that a part's suspicion must exceed; above 0. Movement and loss must both be above the usual.
        draws: of rotation and shift; 1 or more.
    """

    threshold: float = 3.0
    draws: int = 4

    # Since it judges the two parts of a class, and since one must be ahead of the other; it goes by what FCT says.
    revision: ClassVar[int] = FCT.revision + 2

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf or self.draws < 1:
            raise InputError(
                "Consensus: the threshold must be a positive number, and draws 1 or more, found"
                f" {self.threshold} and {self.draws}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Weigh the evidence of parts (see `Sifter.score`)."""
        own, found = self.parts(seen)
        scores = OWN * own
        poisoned = torch.zeros(len(own), dtype=torch.bool)
        reasons = ["too few rows in its class to compare"] * len(own)
        parts = []
        for part in found:
            suspected = part.accused(self.threshold)
            poisoned[part.members] = suspected
            moved, learned, apart = part.movement, part.loss, part.apart
            scores[part.members] += part.suspicion
            told = f"its part of the class: movement {moved:+.2f}, loss {learned:+.2f}, apart {apart:+.2f}"
            for row in part.members.tolist():
                reasons[row] = told
            parts.append(
                {
                    "class": part.label,
                    "rows": len(part.members),
                    "movement": round(moved, 4),
                    "loss": round(learned, 4),
                    "apart": round(apart, 4),
                    "ahead": part.ahead,
                    "suspicion": round(part.suspicion, 4),
                    "poisoned": suspected,
                }
            )
        held = sum(bool(part["poisoned"]) for part in parts)
        return Suspicion(
            scores=scores,
            clean=(scores < 0) & ~poisoned,
            poisoned=poisoned,
            summary=f"{held} of {len(parts)} parts of classes lie apart, move more than usual and were learned earlier",
            reasons=reasons,
            evidence={"parts": parts},
        )

    def parts(self, seen: Observed) -> tuple[Float[Tensor, "n"], list[Part]]:
        """Return the evidence of each row, and the two parts of the classes that have rows enough."""
        movement, _ = FCT(draws=self.draws).measure(seen, seen.model)
        evidence = torch.stack([normal_scores(movement), normal_scores(-seen.losses)], 1)
        points, large = whitened(seen.features, seen.rows.labels.cpu(), seen.rows.classes, seen.runtime)
        parts = []
        for c, rows in large.items():
            second, apart = cut(points[rows], random_state(seen.runtime, "consensus", c))
            # Rows that are all alike are one part.
            both = [members for members in (rows[~second], rows[second]) if len(members)]
            means = [evidence[members].mean(0) for members in both]
            for members, mean, other in zip(both, means, reversed(means)):
                moved, learned = mean.tolist()
                ahead = bool((mean > other).all())
                parts.append(Part(label=c, members=members, movement=moved, loss=learned, apart=apart, ahead=ahead))
        return evidence.mean(1), parts


def cut(points: Float[Tensor, "n k"], seed: int) -> tuple[Bool[Tensor, "n"], float]:
    """Return which points are in the second of two parts, and how far the parts lie apart.

    k-means divides one half of the points in two; all points are cut in the middle of the line between the two means,
    and the other half is measured along it: the distance between its parts, in standard deviations within them. So few
    points in many directions seem no further apart than many. Of the two ways round the one with the larger distance
    counts. It is about `BELL` where the points are one bell curve, and 0, with one part, where no half falls into two
    parts of two or more.

    Args:
        points: whitened, in an order that means nothing.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans

    second, apart = torch.zeros(len(points), dtype=torch.bool), 0.0
    odd = torch.arange(len(points)) % 2 == 1
    for learned in (~odd, odd):
        given = points[learned]
        if len(given) < 2 or bool((given == given[0]).all()):
            continue
        centres = torch.from_numpy(KMeans(2, n_init=4, random_state=seed).fit(given.numpy()).cluster_centers_)
        line = centres[1] - centres[0]
        along = points @ line
        upper = along > centres.mean(0) @ line
        judged = [along[~learned & ~upper], along[~learned & upper]]
        if min(map(len, judged)) < 2:
            continue
        within = float(torch.cat([part - part.mean() for part in judged]).square().mean().sqrt())
        between = float(judged[1].mean() - judged[0].mean())
        # Where parts are points, their spread is what rounding left of it.
        found = between / max(within, 1e-6 * between)
        if found > apart:
            second, apart = upper, found
    return second, apart


def normal_scores(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the normal quantile of each value's rank; equal values share theirs."""
    from scipy.stats import norm, rankdata

    ranks = (rankdata(values.double().numpy()) - 0.5) / len(values)
    return torch.from_numpy(norm.ppf(ranks)).float()
