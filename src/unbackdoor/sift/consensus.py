"""Consensus: the poison is a group of a class that lies apart, whose rows move most and were learned first.

Our own combination of three published ideas; it needs no label, rate, target or number of the attack.

1. *Evidence of each row.* How far its features move when the image is turned and shifted (FCT), and how low its loss is
   early in training (loss isolation). Each is replaced by the normal quantile of its rank among all rows, so that the
   two weigh alike whatever their units. Both are noisy row by row.
2. *Groups.* Each class is divided in two as by SCAn, in features whitened within groups. The distance of the two is
   compared over the classes, in scaled median absolute deviations above the median. In the same features each class is
   divided into a few groups: the rows that are poison for the same reason lie together. SCAn cannot tell which group is
   the poison where they are of one size, as at high poison rates; the evidence can.
3. *Score.* Rows share the mean evidence of their group, up to doubled where their class is unusually far apart. A row's
   own evidence ranks it within its group.
4. *Rule.* A group is held poisoned where three things agree: its rows move more than usual, they were learned earlier
   than usual, and its class is unusually far apart. Each by itself is true of groups of clean rows too, such as a class
   that is easy. Rows with a score below 0 are held clean, and the rest is undecided.

The thresholds were chosen by looking at a few small runs, and are not calibrated (`benchmarks/consensus_thresholds.py`
is for that, and has not been run yet). Where every class holds poison, as in
an all-to-all attack, no class lies further apart than others: rows are ranked, and none is held poisoned.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import FEWEST, Sifter, Suspicion
from unbackdoor.sift.fct import FCT
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.robust import random_state, robust_z
from unbackdoor.sift.scan import SCAn, divided

OWN = 0.1
"""Weight of a row's own evidence beside that of its group."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a class that lie together, and what speaks against them.

    Attributes:
        label: the class.
        members: rows, in increasing order.
        movement: mean normal score of how far their features move.
        loss: mean normal score of how early they were learned.
        apart: of the class: how far its two parts lie from each other, in scaled median absolute deviations above the
            median of the classes.
    """

    label: int
    members: Int[Tensor, "m"]
    movement: float
    loss: float
    apart: float

    @property
    def evidence(self) -> float:
        """Mean of movement and loss."""
        return (self.movement + self.loss) / 2

    def accused(self, evidence: float, apart: float) -> bool:
        """Return whether the group is held poisoned under these thresholds (see `Consensus`)."""
        strong = self.evidence > evidence and min(self.movement, self.loss) > evidence / 2
        return strong and self.apart > apart


@dataclass(frozen=True, kw_only=True)
class Consensus(Sifter):
    """Hold a group of a class poisoned where movement, loss and distance all say so; the default.

    Attributes:
        evidence: that a group's mean of movement and loss must exceed, and each of the two by half, in standard
            deviations; above 0.
        apart: that the distance of a class's two parts must exceed, in scaled median absolute deviations.
        groups: into which each class is divided, 2 or more; fewer where it has few rows.
        draws: of rotation and shift; 1 or more.
    """

    evidence: float = 1.0
    apart: float = 3.0
    groups: int = 4
    draws: int = 4

    # It compares classes as that does.
    least_classes: ClassVar[int] = SCAn.least_classes
    # What it goes by is what FCT says.
    revision: ClassVar[int] = FCT.revision

    def __post_init__(self) -> None:
        if not 0 < self.evidence < math.inf or not 0 < self.apart < math.inf or self.groups < 2 or self.draws < 1:
            raise InputError(
                "Consensus: evidence and apart must be positive numbers, groups 2 or more and draws 1 or more,"
                f" found {self.evidence}, {self.apart}, {self.groups} and {self.draws}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Weigh the evidence of groups (see `Sifter.score`)."""
        own, found = self.grouped(seen)
        scores = OWN * own
        poisoned = torch.zeros(len(own), dtype=torch.bool)
        reasons = ["too few rows in its class to compare"] * len(own)
        groups = []
        for group in found:
            weight = 1 + min(max(group.apart, 0.0), self.apart) / self.apart
            scores[group.members] += weight * group.evidence
            suspected = group.accused(self.evidence, self.apart)
            poisoned[group.members] = suspected
            moved, learned, apart = group.movement, group.loss, group.apart
            told = f"its group: movement {moved:+.2f}, loss {learned:+.2f}, apart {apart:+.2f}"
            for row in group.members.tolist():
                reasons[row] = told
            groups.append(
                {
                    "class": group.label,
                    "rows": len(group.members),
                    "movement": round(moved, 4),
                    "loss": round(learned, 4),
                    "apart": round(apart, 4),
                    "poisoned": suspected,
                }
            )
        held = sum(bool(group["poisoned"]) for group in groups)
        return Suspicion(
            scores=scores,
            clean=(scores < 0) & ~poisoned,
            poisoned=poisoned,
            summary=f"{held} of {len(groups)} groups lie apart, move more than usual and were learned earlier",
            reasons=reasons,
            evidence={"groups": groups},
        )

    def grouped(self, seen: Observed) -> tuple[Float[Tensor, "n"], list[Group]]:
        """Return the evidence of each row, and the groups of the classes that have rows enough."""
        movement, _ = FCT(draws=self.draws).measure(seen, seen.model)
        evidence = torch.stack([normal_scores(movement), normal_scores(-seen.losses)], 1)
        points, found = divided(seen.features, seen.rows.labels.cpu(), seen.rows.classes, seen.runtime)
        anomalies = dict(zip(found, robust_z(torch.tensor([one.distance for one in found.values()])).tolist()))
        groups = []
        for c in found:
            rows = seen.of_class(c)
            for part in parted(points[rows], self.groups, random_state(seen.runtime, "consensus", c)):
                moved, learned = evidence[rows[part]].mean(0).tolist()
                groups.append(Group(label=c, members=rows[part], movement=moved, loss=learned, apart=anomalies[c]))
        return evidence.mean(1), groups


def parted(points: Float[Tensor, "n k"], groups: int, seed: int) -> list[Int[Tensor, "m"]]:
    """Return the rows of each group of a class, by k-means; at least `FEWEST` rows a group on average."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    if not points.shape[1]:
        # Features that do not vary.
        return [torch.arange(len(points))]
    wanted = max(1, min(groups, len(points) // FEWEST))
    with warnings.catch_warnings():
        # Of rows that are all alike: there are then fewer groups.
        warnings.simplefilter("ignore", ConvergenceWarning)
        assigned = torch.from_numpy(KMeans(wanted, n_init=4, random_state=seed).fit(points.numpy()).labels_)
    parts = [(assigned == number).nonzero().squeeze(1) for number in range(wanted)]
    return [part for part in parts if len(part)]


def normal_scores(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the normal quantile of each value's rank; equal values share theirs."""
    from scipy.stats import norm, rankdata

    ranks = (rankdata(values.double().numpy()) - 0.5) / len(values)
    return torch.from_numpy(norm.ppf(ranks)).float()
