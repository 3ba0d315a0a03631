"""Consensus: of each class's two groups, the one whose rows both move most and were learned first is the poison.

Our own combination of three published ideas; it needs no label, rate, target or number of the attack.

1. *Evidence of each row.* How far its features move when the image is turned and shifted (FCT), and how low its loss is
   early in training (loss isolation). Each is replaced by the normal quantile of its rank among all rows, so that the
   two weigh alike whatever their units. Both are noisy row by row.
2. *Groups.* Each class is divided in two as by SCAn, in features whitened within groups. Poisoned rows of a class share
   what makes them poison and lie together; which of the two groups is the poison, SCAn cannot tell where they are of
   one size, as at high poison rates.
3. *Rule.* Rows of a group share its mean evidence, weighted by how surely they belong to it. A group is held poisoned
   where the means of both kinds of evidence exceed the threshold: by itself either finds groups of clean rows, such as
   a class that is easy, or one whose pictures look different upside down. Rows with less evidence than half of all are
   held clean, and the rest is undecided.

By rank alone the most suspicious tenth of any data has a mean evidence of 1.75. What clean data do not have is a whole
group of a class in which both means are that high. The threshold was chosen on other seeds than those that are
reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion
from unbackdoor.sift.fct import FCT
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.scan import divided

OWN = 0.1
"""Weight of a row's own evidence beside that of its group: it ranks the rows within a group, and no more."""


@dataclass(frozen=True, kw_only=True)
class Consensus(Sifter):
    """Hold a group of a class poisoned where movement and loss both say so; the default.

    Attributes:
        threshold: on the mean evidence of a group, of both kinds, in standard deviations.
        draws: of rotation and shift; 1 or more.
    """

    threshold: float = 1.3
    draws: int = 4

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold) or self.draws < 1:
            raise InputError(
                "Consensus: the threshold must be a number and draws 1 or more, found"
                f" {self.threshold} and {self.draws}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Weigh the evidence of groups (see `Sifter.score`)."""
        movement, _ = FCT(draws=self.draws).measure(seen, seen.model)
        evidence = torch.stack([normal_scores(movement), normal_scores(-seen.losses)], 1)
        labels = seen.rows.labels.cpu()
        _, found = divided(seen.features, labels, seen.rows.classes, seen.runtime)
        own = evidence.mean(1)
        scores = own.clone()
        poisoned = torch.zeros(len(own), dtype=torch.bool)
        reasons = ["too few rows in its class to compare"] * len(own)
        groups = []
        for c, division in found.items():
            rows = seen.of_class(c)
            # Of a class that could not be divided, the second group is empty.
            members = [group for group in (~division.second, division.second) if bool(group.any())]
            means = [evidence[rows[group]].mean(0) for group in members]
            belongs = [1 - division.posterior, division.posterior][: len(members)]
            scores[rows] = sum((weight * mean.mean() for weight, mean in zip(belongs, means)), start=OWN * own[rows])
            for group, mean in zip(members, means):
                suspected = bool((mean > self.threshold).all())
                poisoned[rows[group]] = suspected
                moved, learned = mean.tolist()
                for row in rows[group].tolist():
                    reasons[row] = f"its group of {int(group.sum())} rows: movement {moved:+.2f}, loss {learned:+.2f}"
                groups.append(
                    {
                        "class": c,
                        "rows": int(group.sum()),
                        "movement": round(moved, 4),
                        "loss": round(learned, 4),
                        "gain": round(division.gain, 4),
                        "poisoned": suspected,
                    }
                )
        held = [group for group in groups if group["poisoned"]]
        return Suspicion(
            scores=scores,
            clean=(scores < 0) & ~poisoned,
            poisoned=poisoned,
            summary=f"{len(held)} of {len(groups)} groups move more and were learned earlier than others"
            f" (both means above {self.threshold:g})",
            reasons=reasons,
            evidence={"groups": groups},
        )


def normal_scores(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return the normal quantile of each value's rank; equal values share theirs."""
    from scipy.stats import norm, rankdata

    ranks = (rankdata(values.double().numpy()) - 0.5) / len(values)
    return torch.from_numpy(norm.ppf(ranks)).float()
