"""Losses that do not fall below a bound, as ABL begins: what stays lower all the same was learned by a shortcut.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021). Local
gradient ascent, as the paper's formula has it, is the mean over rows of sign(l - gamma) l. Published code bounds the
mean loss L of a batch instead, the authors' by sign(L - gamma) L, BackdoorBench's by flooding, |L - gamma| + gamma,
whose gradient is the same. Rows and batches differ where some rows of a batch lie below gamma and others above: row by
row each is pushed its own way, of a batch all go one way.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.training.hook import Batch, Hook

Of = Literal["row", "batch"]
"""Which loss is kept there: that of each row, as the paper has it, or the mean of a batch, as published code has it."""


def bounded_loss(losses: Float[Tensor, "*n"], gamma: float) -> Float[Tensor, ""]:
    """Return the mean of sign(l - gamma) l, whose descent lets losses above gamma fall, and those below it rise.

    Args:
        losses: of rows, or one of a batch.
        gamma: 0 or more.
    """
    return (torch.sign(losses - gamma) * losses).mean()


class Bounded(Hook):
    """Cross-entropy that is kept at gamma (see `bounded_loss`).

    Args:
        gamma: 0 or more.
        of: see `Of`.

    Raises:
        InputError: a gamma out of range.
    """

    def __init__(self, gamma: float, of: Of) -> None:
        if not 0 <= gamma < math.inf:
            raise InputError(f"gamma, at which the loss is kept, must be a number of 0 or more, found {gamma}")
        self.gamma, self.of = gamma, of

    def identity(self) -> object:
        """Return the options."""
        return "bounded", self.gamma, self.of

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the bounded loss."""
        losses = F.cross_entropy(
            model(batch.images),
            batch.targets,
            label_smoothing=self.recipe.label_smoothing,
            reduction="none" if self.of == "row" else "mean",
        )
        return bounded_loss(losses, self.gamma)
