"""Beatrix: triggered images change how the channels of the last feature map go together.

Ma, Wang, Sun, Xu, Wang, Chen, Zhu, "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram Matrices" (NDSS
2023). For a feature map F (channels x positions) the Gram matrices of order p,

    G_p = ( F^p (F^p)^T )^(1/p),    p = 1 ... orders,    all powers elementwise, the root with its sign,

are compared with the median and the median absolute deviation (MAD) that each of their entries has within the class. A
row's deviation is the sum over all entries of how far they lie beyond median +- 10 MAD, in units of that bound.

The paper takes medians from clean samples, asks of each class by a kernel test whether its deviations come from one
distribution, and then suspects classes. Here medians are those of the class's own rows (of clean samples where there
are any), and the rows with the highest deviations are held poisoned, one in twenty: always, also in clean data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.sift.base import Sifter, Suspicion, check_share, extremes
from unbackdoor.sift.observed import Observed

BATCH = 250
"""Images whose Gram matrices are in memory at once."""

BOUND = 10.0
"""MADs around the median that are usual, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Beatrix(Sifter):
    """Score rows by entries of Gram matrices that are unusual in their class.

    Attributes:
        orders: of the Gram matrices, 1 or more.
        references: rows of each class from which medians are taken, 2 or more; all if there are fewer.
        poisoned_share: of the rows with the highest deviations, held poisoned.
    """

    orders: int = 8
    references: int = 200
    poisoned_share: float = 0.05

    always: ClassVar[bool] = True
    uses_clean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share("Beatrix", poisoned_share=self.poisoned_share)
        if self.orders < 1 or self.references < 2:
            raise InputError(
                f"Beatrix: orders must be 1 or more and references 2 or more, found {self.orders} and {self.references}"
            )

    def inspect(self, seen: Observed) -> Suspicion:
        """Compare class by class (see `Sifter.score`)."""
        scores = torch.zeros(len(seen.rows))
        with seen.runtime.progress.bar("Beatrix: classes", seen.rows.classes) as advance:
            for c in range(seen.rows.classes):
                rows = seen.of_class(c)
                if len(rows) > 1:
                    scores[rows] = self.of_class(seen, c, rows)
                advance()
        _, poisoned = extremes(scores, 0.0, self.poisoned_share, seen.runtime.generator("beatrix", "ties"))
        return Suspicion(
            scores=scores,
            clean=~poisoned,
            poisoned=poisoned,
            summary=f"the {int(poisoned.sum())} rows whose Gram matrices are most unusual are held poisoned, by their"
            " number alone",
            reasons=[f"deviation {score:.4g} of its Gram matrices" for score in scores.tolist()],
        )

    def of_class(self, seen: Observed, c: int, rows: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Return the deviation of each row of a class."""
        source, few = seen.rows.images, rows
        if seen.clean is not None and int((seen.clean.labels == c).sum()) > 1:
            source, few = seen.clean.images, (seen.clean.labels.cpu() == c).nonzero().squeeze(1)
        draw = torch.randperm(len(few), generator=seen.runtime.generator("beatrix", c))[: self.references]
        few = few[draw]
        known = torch.cat([seen.maps(source[few[i : i + BATCH]]) for i in range(0, len(few), BATCH)])
        bounds = [bounds_of(gram(known, p)) for p in range(1, self.orders + 1)]
        deviations = []
        for start in range(0, len(rows), BATCH):
            maps = seen.maps(seen.rows.images[rows[start : start + BATCH]])
            deviations.append(sum(beyond(gram(maps, p), *bounds[p - 1]) for p in range(1, self.orders + 1)))
        return torch.cat([one.float().cpu() for one in deviations if isinstance(one, Tensor)])


def gram(maps: Float[Tensor, "n c p"], order: int) -> Float[Tensor, "n u"]:
    """Return the upper triangle of each Gram matrix of that order."""
    # Divided by the largest value first, so that no eighth power is too large for single precision.
    scale = maps.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)
    powers = (maps / scale).pow(order)
    product = powers @ powers.transpose(1, 2)
    upper = torch.triu_indices(maps.shape[1], maps.shape[1], device=maps.device)
    entries = product[:, upper[0], upper[1]]
    return entries.sign() * entries.abs().pow(1 / order) * scale.flatten(1).square()


def bounds_of(entries: Float[Tensor, "n u"]) -> tuple[Float[Tensor, "u"], Float[Tensor, "u"]]:
    """Return median and MAD of each entry."""
    median = entries.median(0).values
    return median, (entries - median).abs().median(0).values


def beyond(entries: Float[Tensor, "n u"], median: Float[Tensor, "u"], mad: Float[Tensor, "u"]) -> Float[Tensor, "n"]:
    """Return by how much the entries leave median +- 10 MAD, in units of the bound that they leave, summed."""
    low, high = median - BOUND * mad, median + BOUND * mad
    below = (low - entries).clamp_min(0) / low.abs().clamp_min(1e-6)
    above = (entries - high).clamp_min(0) / high.abs().clamp_min(1e-6)
    return (below + above).sum(1)
