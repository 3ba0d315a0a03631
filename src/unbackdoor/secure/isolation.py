"""Isolation of samples that are learned too easily, as ABL does it: poisoned ones have the lowest losses early on.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021). A model is
trained for some epochs under a loss that does not let the loss fall below `gamma`: what stays lower all the same is
learned by a shortcut. Published code runs the images one by one; here it is one batched pass.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Hook, Runtime, logits_of

Bound = Literal["ascent", "flooding"]
"""How the loss is kept at `gamma`: by local gradient ascent, sign(L - gamma) L, or by flooding, |L - gamma| + gamma."""


def bounded_loss(loss: Float[Tensor, ""], gamma: float, bound: Bound) -> Float[Tensor, ""]:
    """Return a loss that falls where `loss` is above gamma, and whose descent makes `loss` rise where it is below.

    Args:
        loss: the mean over a batch.
        gamma: 0 or more.
        bound: see `Bound`; the gradients are the same but at gamma itself.
    """
    return torch.sign(loss - gamma) * loss if bound == "ascent" else (loss - gamma).abs() + gamma


class Bounded(Hook):
    """Cross-entropy that is kept at gamma (see `bounded_loss`).

    Raises:
        InputError: an unknown bound, or a gamma out of range.
    """

    def __init__(self, gamma: float, bound: Bound) -> None:
        if bound not in ("ascent", "flooding") or not 0 <= gamma < math.inf:
            raise InputError(f"the bound is ascent or flooding, and gamma 0 or more, found {bound!r} and {gamma}")
        self.gamma, self.bound = gamma, bound

    def identity(self) -> object:
        """Return the options."""
        return "isolation", self.gamma, self.bound

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the bounded loss."""
        return bounded_loss(super().loss(model, batch), self.gamma, self.bound)


def losses_of(model: nn.Module, data: ImageSet, runtime: Runtime) -> Float[Tensor, "n"]:
    """Return the cross-entropy of each image with the label that it has, in evaluation mode, as it is."""
    data = data.to(runtime.place)
    return F.cross_entropy(logits_of(model, data.images, runtime), data.labels, reduction="none")


def lowest(losses: Float[Tensor, "n"], share: float) -> tuple[Int[Tensor, "isolated"], Int[Tensor, "kept"]]:
    """Return the rows with the lowest losses, and the others, both ascending.

    Args:
        losses: of all rows.
        share: of the rows that are isolated, above 0 and below 1; at least one row, and never all.
    """
    count = min(max(1, round(share * len(losses))), len(losses) - 1)
    order = torch.argsort(losses.cpu(), stable=True)
    return order[:count].sort().values, order[count:].sort().values
