"""Blind: a backdoor that comes in through the loss.

Bagdasaryan, Shmatikov, "Blind Backdoors in Deep Learning Models" (USENIX Security 2021). The attacker's code computes a
second loss on triggered copies and adds it, once the first has become small. Pattern, place and weights are
BackdoorBench's (fixed weights 1 and 0.9). There each image is used twice; here half of each batch is triggered instead,
which costs no more than plain training, and the wait is 200 batches instead of 1,000, as our schedules are shorter.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.online import Online, OnlineHook, weighted_loss
from unbackdoor.attacks.patterns import scaled, window
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Runtime

PATTERN = ((1, 0, 1), (0, 1, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1))
"""Five rows of three pixels, 0 black and 1 white."""
PLACE = (3, 23)
"""Row and column of its upper left corner at 32 x 32."""


@dataclass(frozen=True, kw_only=True)
class Blind(Online):
    """Small black-and-white pattern, taught by a second loss.

    Attributes:
        weight: of the backdoor's loss beside the first, above 0.
        threshold: of the mean first loss, below which the second begins; above 0.
        history: batches of that mean, 1 or more.
    """

    poison_rate: float = 0.5
    weight: float = 0.9
    threshold: float = 1.0
    history: int = 200

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[Stamp, BlindHook]:
        """Make the pattern."""
        if not self.weight > 0 or not self.threshold > 0 or self.history < 1:
            raise InputError(
                "Blind: weight and threshold must be positive and history 1 or more,"
                f" found {self.weight}, {self.threshold} and {self.history}"
            )
        _, height, width = train.shape
        rows, columns = max(5, scaled(5, height)), max(3, scaled(3, width))
        row, column = scaled(PLACE[0], height), min(scaled(PLACE[1], width), width - columns)
        mask = window(train.shape, rows, columns, row, column, "Blind's pattern")
        pixels = torch.tensor(PATTERN, dtype=torch.float32)
        pixels = pixels[torch.arange(rows) * 5 // rows][:, torch.arange(columns) * 3 // columns]
        pattern = torch.zeros(train.shape)
        pattern[:, row : row + rows, column : column + columns] = pixels
        trigger = Stamp(mask=mask, pattern=pattern)
        return trigger, BlindHook(self, trigger, criterion)


@dataclass
class _Wait:
    """The last losses, and whether the wait is over."""

    losses: deque[float] = field(default_factory=deque)
    over: bool = False


class BlindHook(OnlineHook):
    """Poisons once the loss is small, and weighs the poisoned rows."""

    options: Blind

    def __init__(self, options: Blind, trigger: Stamp, criterion: Criterion) -> None:
        super().__init__(options, trigger, criterion)
        self.wait = _Wait(deque(maxlen=options.history))

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch as it is until the wait is over, then the poisoned one."""
        return super().batch(model, batch, generator) if self.wait.over else batch

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the plain loss, or the sum of both."""
        if self.wait.over:
            poisoned, _ = self.counts(len(batch.images))
            smoothing = self.recipe.label_smoothing
            return weighted_loss(model(batch.images), batch, poisoned, self.options.weight, smoothing)
        loss = super().loss(model, batch)
        self.wait.losses.append(float(loss.detach()))
        full = len(self.wait.losses) == self.options.history
        self.wait.over = full and sum(self.wait.losses) / len(self.wait.losses) < self.options.threshold
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses and whether the wait is over."""
        return {"losses": list(self.wait.losses), "over": self.wait.over}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.wait = _Wait(deque(state["losses"], maxlen=self.options.history), state["over"])
