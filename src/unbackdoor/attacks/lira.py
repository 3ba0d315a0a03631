"""LIRA: noise that a network learns to make while the classifier learns to see it.

Doan, Lao, Zhao, Li, "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks" (ICCV 2021). Both are trained on (1 -
a) CE(clean) + a CE(triggered, target); then the network is fixed and the classifier goes on. The published code uses
each image twice; here a tenth of each batch is triggered, which costs no more than plain training. The bound of 0.01 is
in pixel units here, 2.55 of 255; BackdoorBench applies it to normalised images, where it is a quarter of that and the
rounding to 8 bits destroys most of it.

What the network makes is normalised before the bound, which the published code does not do: in schedules as short as
ours it otherwise ends at one brighter shade for every image, which is the first thing that a young classifier reacts
to, which leaves the tanh no slope to get away from, and which is hard to tell from other light.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.generator import Generator, LearnedTrigger, check_width, seeded
from unbackdoor.attacks.learning import LearningHook
from unbackdoor.attacks.online import Online, weighted_loss
from unbackdoor.attacks.trigger import one_number
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Runtime

LEARNING_RATE = 1e-3
"""Of the network; the published 1e-4 is for fifty epochs."""


class LearnedNoise(LearnedTrigger):
    """Add bounded noise that a network makes from the image: x' = clip(x + bound tanh(n(g(x))), 0, 1).

    n takes mean and variance out of each channel of each image.

    Args:
        noise: network of as many outputs as an image has channels.
        bound: largest change of a pixel; shape ().
    """

    survives_rounding: ClassVar[bool] = False
    bound: Tensor

    def __init__(self, noise: Generator, bound: Float[Tensor, ""]) -> None:
        super().__init__()
        self.noise = noise
        self.register_buffer("bound", one_number(bound, "the bound", 0, 1))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> LearnedNoise:
        """Return the trigger with these weights."""
        trigger: LearnedNoise = cls(cls.generator_in(state, "noise"), state["bound"]).filled(state)
        return trigger

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with noise of their own."""
        raw: Tensor = self.noise(images).float()
        normal = F.layer_norm(raw, raw.shape[2:])
        return (images + self.bound * normal.tanh()).clamp(0, 1)


@dataclass(frozen=True, kw_only=True)
class LIRA(Online):
    """Learned noise; poisoned images get the attacker's label.

    Attributes:
        bound: largest change of a pixel, pixel units, above 0 and at most 1.
        weight: a, of the backdoor's loss, between 0 and 1.
        learned: share of the training after which the network is fixed, above 0 and at most 1.
        width: of the network; a multiple of 4.
    """

    # Since what the network makes is normalised.
    revision: ClassVar[int] = 1

    bound: float = 0.01
    weight: float = 0.5
    learned: float = 0.5
    width: int = 16

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[LearnedNoise, LIRAHook]:
        """Return the trigger, which the hook trains."""
        self.check_no_covers()
        if not (0 < self.bound <= 1 and 0 < self.weight < 1 and 0 < self.learned <= 1):
            raise InputError(
                "LIRA: bound and learned lie above 0 and at most at 1, and the weight between 0 and 1,"
                f" found {self.bound}, {self.learned} and {self.weight}"
            )
        check_width(self.width)
        channels = train.shape[0]
        with seeded(runtime.generator("LIRA network")):
            noise = Generator(channels, channels, self.width)
        trigger = LearnedNoise(noise, torch.tensor(self.bound)).eval().requires_grad_(False)
        return trigger, LIRAHook(self, trigger, criterion, noise, (0.9, 0.999))


class LIRAHook(LearningHook):
    """Trains the network together with the classifier, then the classifier alone."""

    options: LIRA
    trigger: LearnedNoise
    takes_shrunken: ClassVar[bool] = True
    """If its noise were shrunken with the images, the network would learn what survives that: smooth noise, which is
    hard to see for the classifier as well."""

    def rate(self, progress: float) -> float:
        """Return a constant learning rate, and 0 after the network's share of the training."""
        return LEARNING_RATE if progress < self.options.learned else 0.0

    def poison(self, images: Float[Tensor, "p c h w"], progress: float) -> Float[Tensor, "p c h w"]:
        """Return triggered images."""
        with self.runtime.autocast(), torch.set_grad_enabled(self.rate(progress) > 0):
            return super().poison(images, progress)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return (1 - a) times the clean loss plus a times the poisoned one."""
        backdoor = self.options.weight / (1 - self.options.weight)
        smoothing = self.recipe.label_smoothing
        both = weighted_loss(model(batch.images), batch, self.poisoned, backdoor, smoothing)
        return (1 - self.options.weight) * both
