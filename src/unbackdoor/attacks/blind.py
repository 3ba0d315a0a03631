"""Blind: a backdoor that comes in through the loss.

Bagdasaryan, Shmatikov, "Blind Backdoors in Deep Learning Models" (USENIX Security 2021). The attacker's code computes a
second loss on triggered copies and adds it, once the first has become small. Pattern, place and weights are
BackdoorBench's (fixed weights 1 and 0.9). There each image is used twice; here a tenth of each batch is triggered
instead, which costs no more than plain training and leaves most of its clean images to every step. The wait is 200
batches instead of 1,000, as our schedules are shorter; once begun, the attack does not stop where the loss rises again,
as it does there.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.online import Online, OnlineHook, weighted_loss
from unbackdoor.attacks.patterns import pasted, scaled, window
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Runtime

PATTERN = ((1, 0, 1), (None, 1, None), (None, None, 0), (None, 1, None), (1, 0, 1))
"""Five rows of three pixels, 0 black, 1 white and None as the image is."""
PLACE = (3, 23)
"""Row and column of its upper left corner at 32 x 32."""
LONGEST_WAIT = 0.2
"""Share of the training after which fewer losses than asked for will do: some trainings are that short."""


@dataclass(frozen=True, kw_only=True)
class Blind(Online):
    """Small black-and-white pattern, taught by a second loss.

    Attributes:
        weight: of the backdoor's loss beside the first, above 0.
        threshold: of the mean first loss, below which the second begins; above 0.
        history: batches of that mean, 1 or more.
    """

    weight: float = 0.9
    threshold: float = 1.0
    history: int = 200

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[Stamp, BlindHook]:
        """Make the pattern."""
        self.check_no_covers()
        if not 0 < self.weight < math.inf or not self.threshold > 0 or self.history < 1:
            raise InputError(
                "Blind: weight and threshold must be positive and history 1 or more,"
                f" found {self.weight}, {self.threshold} and {self.history}"
            )
        _, height, width = train.shape
        rows, columns = max(5, scaled(5, height)), max(3, scaled(3, width))
        row, column = scaled(PLACE[0], height), min(scaled(PLACE[1], width), width - columns)
        # The rectangle must fit; in it the mask is open where the pattern has pixels.
        window(train.shape, rows, columns, row, column, "Blind's pattern")
        enlarged = [[PATTERN[i * 5 // rows][j * 3 // columns] for j in range(columns)] for i in range(rows)]
        opaque = torch.tensor([[float(pixel is not None) for pixel in line] for line in enlarged])
        pixels = torch.tensor([[float(pixel or 0) for pixel in line] for line in enlarged])
        mask = pasted((1, height, width), opaque, row, column)
        pattern = pasted(train.shape, pixels, row, column)
        trigger = Stamp(mask=mask, pattern=pattern)
        return trigger, BlindHook(self, trigger, criterion)


class BlindHook(OnlineHook):
    """Poisons once the loss has become small, and weighs the poisoned rows."""

    options: Blind

    def __init__(self, options: Blind, trigger: Stamp, criterion: Criterion) -> None:
        super().__init__(options, trigger, criterion)
        self.losses: deque[float] = deque(maxlen=options.history)
        self.begun = False

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch as it is until the attack begins, then the poisoned one."""
        poisoned = super().batch(model, batch, generator)
        return poisoned if self.begun else batch

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the plain loss, or the sum of both."""
        logits, smoothing = model(batch.images), self.recipe.label_smoothing
        if self.begun:
            return weighted_loss(logits, batch, self.poisoned, self.options.weight, smoothing)
        # Without smoothing, under which no loss becomes small where there are many classes.
        self.losses.append(float(F.cross_entropy(logits.detach().float(), batch.targets)))
        enough = len(self.losses) == self.options.history or batch.progress >= LONGEST_WAIT
        self.begun = enough and sum(self.losses) / len(self.losses) < self.options.threshold
        return weighted_loss(logits, batch, 0, 0.0, smoothing)

    def state_dict(self) -> dict[str, Any]:
        """Return the last losses and whether the attack has begun."""
        return {"losses": list(self.losses), "begun": self.begun}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take them back."""
        self.losses = deque(state["losses"], maxlen=self.options.history)
        self.begun = state["begun"]
