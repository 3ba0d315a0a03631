"""Losses that do not fall below a bound, as ABL begins: what stays lower all the same was learned by a shortcut.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021). Local
gradient ascent is sign(L - gamma) L of a batch's mean loss L, as in the authors' code; BackdoorBench's flooding,
|L - gamma| + gamma, has the same gradient. The paper's formula bounds the loss of each row by itself. That undoes what
the method lives on: poisoned rows, too, are pushed up to gamma, where clean ones are (see the card of LossIsolation).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.training.hook import Batch, Hook


def bounded_loss(loss: Float[Tensor, ""], gamma: float) -> Float[Tensor, ""]:
    """Return sign(L - gamma) L, whose descent lets a loss above gamma fall, and one below it rise.

    Args:
        loss: mean of a batch.
        gamma: 0 or more.
    """
    return torch.sign(loss - gamma) * loss


class Bounded(Hook):
    """Cross-entropy that is kept at gamma (see `bounded_loss`).

    Args:
        gamma: 0 or more.

    Raises:
        InputError: a gamma out of range.
    """

    def __init__(self, gamma: float) -> None:
        if not 0 <= gamma < math.inf:
            raise InputError(f"gamma, at which the loss is kept, must be a number of 0 or more, found {gamma}")
        self.gamma = gamma

    def identity(self) -> object:
        """Return the bound."""
        return "bounded", self.gamma

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the bounded loss."""
        return bounded_loss(super().loss(model, batch), self.gamma)
