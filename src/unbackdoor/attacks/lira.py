"""LIRA: noise that a network learns to make while the classifier learns to see it.

Doan, Lao, Zhao, Li, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks" (ICCV 2021). Both are trained on (1 -
a) CE(clean) + a CE(triggered, target); then the network is fixed and the classifier goes on. The published code uses
each image twice; here half of each batch is triggered, which costs no more than plain training. The bound of 0.01 is
in pixel units here, 2.55 of 255; BackdoorBench applies it to normalised images, where it is a quarter of that and the
rounding to 8 bits destroys most of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.generator import Generator, LearnedTrigger, seeded_generator
from unbackdoor.attacks.online import Online, OnlineHook, weighted_loss
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Recipe, Runtime

LEARNING_RATE = 1e-3
"""Of the network; the published 1e-4 is for fifty epochs."""


class LearnedNoise(LearnedTrigger):
    """Add bounded noise that a network makes from the image: x' = clip(x + bound tanh(g(x)), 0, 1).

    Args:
        noise: network of as many outputs as an image has channels.
        bound: largest change of a pixel; shape ().
    """

    survives_rounding: ClassVar[bool] = False
    bound: Tensor

    def __init__(self, noise: Generator, bound: Float[Tensor, ""]) -> None:
        super().__init__()
        self.noise = noise
        self.register_buffer("bound", bound)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> LearnedNoise:
        """Return the trigger with these weights."""
        trigger: LearnedNoise = cls(cls.generator_in(state, "noise"), state["bound"]).filled(state)
        return trigger

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with noise of their own."""
        raw: Tensor = self.noise(images)
        return (images + self.bound * raw.float().tanh()).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class LIRA(Online):
    """Learned noise; poisoned images get the attacker's label.

    Attributes:
        bound: largest change of a pixel, pixel units, above 0 and at most 1.
        weight: a, of the backdoor's loss, between 0 and 1.
        learned: share of the training after which the network is fixed, above 0 and at most 1.
        width: of the network; a multiple of 4.
    """

    poison_rate: float = 0.5
    bound: float = 0.01
    weight: float = 0.5
    learned: float = 0.5
    width: int = 16

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[LearnedNoise, LIRAHook]:
        """Return the trigger, which the hook trains."""
        if not (0 < self.bound <= 1 and 0 < self.weight < 1 and 0 < self.learned <= 1) or self.width % 4:
            raise InputError(
                "LIRA: bound and learned lie above 0 and at most at 1, the weight between 0 and 1, and the width is a"
                f" multiple of 4, found {self.bound}, {self.learned}, {self.weight} and {self.width}"
            )
        channels = train.shape[0]
        noise = seeded_generator(channels, channels, self.width, runtime.generator("LIRA network"))
        trigger = LearnedNoise(noise, torch.tensor(self.bound)).eval().requires_grad_(False)
        return trigger, LIRAHook(self, trigger, criterion)


class LIRAHook(OnlineHook):
    """Trains the network together with the classifier, then the classifier alone."""

    options: LIRA
    trigger: LearnedNoise
    kept: dict[str, Any] | None = None

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the network to the device, and make its optimiser."""
        super().begin(model, recipe, runtime)
        runtime.settle(self.trigger)
        self.trigger.noise.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.trigger.noise.parameters(), LEARNING_RATE)
        if self.kept:
            self.optimizer.load_state_dict(self.kept)

    def poison(self, images: Float[Tensor, "p c h w"], others: Float[Tensor, "q c h w"]) -> Float[Tensor, "p c h w"]:
        """Return triggered images."""
        with self.runtime.autocast():
            return super().poison(images, others)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted sum of both losses."""
        poisoned, _ = self.counts(len(batch.images))
        weight = self.options.weight / (1 - self.options.weight)
        smoothing = self.recipe.label_smoothing
        return (1 - self.options.weight) * weighted_loss(model(batch.images), batch, poisoned, weight, smoothing)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do a step of the classifier and, in the first part of the training, one of the network."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = super().update(model, batch, optimizer)
        if batch.progress < self.options.learned:
            self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the network's weights and the optimiser's state."""
        return {"trigger": self.trigger.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.trigger.load_state_dict(state["trigger"])
        self.kept = state["optimizer"]
