"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A second model whose weights and running statistics follow the first one's slowly.

    Args:
        model: what is followed.
        decay: share of the past that one step keeps, 0 to 1; less in the first steps, which know little.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay
        ours, theirs = self.model.state_dict(), model.state_dict()
        floats = [name for name, value in theirs.items() if value.is_floating_point()]
        self._ours = [ours[name] for name in floats]
        self._theirs = [theirs[name] for name in floats]
        self._counts = [(ours[name], theirs[name]) for name in theirs if name not in set(floats)]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the followed model, after its step number `step` (0-based)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._ours, self._theirs, 1 - decay)
        for ours, theirs in self._counts:
            ours.copy_(theirs)
