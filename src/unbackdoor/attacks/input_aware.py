"""Input-aware: a patch that is made anew for every image.

Nguyen, Tran, "Input-Aware Dynamic Backdoor Attack" (NeurIPS 2020). One network draws a sparse mask from an image,
another the pattern in it. The first is trained alone; the second together with the classifier, on batches of which a
tenth gets its own trigger and the attacker's label, and a tenth another image's trigger and its true label. Both are
pushed to differ between images: ||x1 - x2|| / ||g(x1) - g(x2)||; patterns of poisoned images are compared with each
other, where the authors make those of as many other images. Rates, densities and weights are those of the
authors' code, which forgets to clear the pattern network's gradients; we do not. Its mask network learns with Adam's
usual betas here. Our networks are smaller, have group normalisation and learn for fewer epochs, with a learning rate
that falls. Masks begin closed, and are then sharp after a few hundred steps.
"""

from __future__ import annotations

import math
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
from unbackdoor.attacks.online import Online
from unbackdoor.attacks.preparation import prepare
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Hook, Recipe, Runtime

SPARSITY_WEIGHT = 100.0
LEARNING_RATE = 0.01
CLOSED = -0.3
"""What the mask network begins near, before sharpening: masks that are nearly 0. From masks of one half it may come to
rest, on dark images above all, where every mask is faint everywhere and none is sharp."""


class OwnPatch(LearnedTrigger):
    """Mix a pattern into each image under a mask, both made from the image by networks.

    Args:
        patterns: network of as many outputs as an image has channels.
        masks: network of one output.
    """

    def __init__(self, patterns: Generator, masks: Generator) -> None:
        super().__init__()
        self.patterns = patterns
        self.masks = masks

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> OwnPatch:
        """Return the trigger with these weights."""
        trigger: OwnPatch = cls(cls.generator_in(state, "patterns"), cls.generator_in(state, "masks")).filled(state)
        return trigger

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images, each with its own trigger."""
        return self.mixed(images, self.pattern(images), self.mask(images))

    def pattern(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images' patterns, 0 to 1."""
        raw: Tensor = self.patterns(images)
        return (raw.float().tanh() + 1) / 2

    def mask(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
        """Return the images' masks, nearly 0 or 1."""
        return sharpened(self.masks(images))

    @staticmethod
    def mixed(
        images: Float[Tensor, "b c h w"], pattern: Float[Tensor, "b c h w"], mask: Float[Tensor, "b 1 h w"]
    ) -> Float[Tensor, "b c h w"]:
        """Return the images with patterns under masks."""
        return torch.lerp(images, pattern, mask)


@dataclass(frozen=True, kw_only=True)
class InputAware(Online):
    """Patch of each image's own; poisoned images get the attacker's label.

    Attributes:
        density: of a mask, at each pixel, that costs nothing, 0 to 1.
        diversity: weight of the push to differ between images, 0 or more.
        mask_steps: of the mask network, 1 or more; as many epochs as have them.
        width: of both networks; a multiple of 4.
    """

    # Since both networks see shrunken images where the classifier does, triggered images are compared with each other,
    # and masks begin closed.
    revision: ClassVar[int] = 2

    cover_rate: float = 0.1
    density: float = 0.032
    diversity: float = 1.0
    mask_steps: int = 390
    width: int = 16

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[OwnPatch, InputAwareHook]:
        """Train the mask network and return the trigger, whose patterns the hook trains."""
        if not (0 <= self.density < 1 and 0 <= self.diversity < math.inf and self.mask_steps >= 1):
            raise InputError(
                "InputAware: density lies between 0 and 1, diversity is 0 or more and mask steps are 1 or more,"
                f" found {self.density}, {self.diversity} and {self.mask_steps}"
            )
        check_width(self.width)
        channels, seeds = train.shape[0], runtime.generator("input-aware networks")
        with seeded(seeds):
            patterns, masks = Generator(channels, channels, self.width), Generator(channels, 1, self.width)
        nn.init.constant_(masks.get_parameter("leave.bias"), CLOSED)
        recipe = Recipe(
            epochs=math.ceil(self.mask_steps * Recipe.batch_size / len(train)),
            optimizer="Adam",
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            schedule="cosine",
            ema=0.0,
        )
        prepare(masks, train, recipe, runtime, MaskHook(self), work, "masks")
        trigger = OwnPatch(patterns, masks.cpu()).eval().requires_grad_(False)
        return trigger, InputAwareHook(self, trigger, criterion, patterns, (0.5, 0.9))


class MaskHook(Hook):
    """Teaches the mask network to be sparse, and to differ between images."""

    def __init__(self, options: InputAware) -> None:
        self.options = options

    def identity(self) -> object:
        """Return the options."""
        return ("InputAware masks", self.options)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the masks alone."""
        masks = sharpened(model(batch.images))
        sparsity = F.relu(masks - self.options.density).mean()
        others = batch.images.flip(0)
        return SPARSITY_WEIGHT * sparsity + self.options.diversity * sameness(
            batch.images, others, masks, masks.flip(0)
        )


class InputAwareHook(LearningHook):
    """Trains the pattern network together with the classifier."""

    options: InputAware
    trigger: OwnPatch
    takes_shrunken: ClassVar[bool] = True
    """Both networks take any size, and smaller images cost them less."""

    def rate(self, progress: float) -> float:
        """Return a learning rate that falls to 0."""
        return LEARNING_RATE * (1 - progress)

    def poison(self, images: Float[Tensor, "p c h w"], progress: float) -> Float[Tensor, "p c h w"]:
        """Return images with their own triggers, and note how alike these are."""
        with self.runtime.autocast():
            patterns, masks = self.trigger.pattern(images), self.trigger.mask(images)
        self.same = sameness(images, images.roll(1, 0), patterns, patterns.roll(1, 0))
        return self.trigger.mixed(images, patterns, masks)

    def cover(
        self, images: Float[Tensor, "p c h w"], others: Float[Tensor, "p c h w"], generator: torch.Generator
    ) -> Float[Tensor, "p c h w"]:
        """Return images with the triggers of others."""
        with self.runtime.autocast():
            return self.trigger.mixed(images, self.trigger.pattern(others), self.trigger.mask(others))

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy, plus the sameness of the triggers."""
        plain = super().loss(model, batch)
        return plain + self.options.diversity * self.same if self.poisoned else plain


def sharpened(values: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Return a network's output as a mask that is nearly 0 or 1: tanh(10 tanh(v)) / 2 + 1/2.

    The published code has two steps: o = tanh(v) / 2 + 1/2, and then tanh(20 o - 10) / 2 + 1/2.
    """
    return (10 * values.float().tanh()).tanh() / 2 + 0.5


def sameness(
    images: Float[Tensor, "b c h w"],
    others: Float[Tensor, "b c h w"],
    made: Float[Tensor, "b d h w"],
    made_of_others: Float[Tensor, "b d h w"],
) -> Float[Tensor, ""]:
    """Return the mean of ||x1 - x2|| / (||g(x1) - g(x2)|| + 1e-7), the norms being roots of mean squares."""
    apart = (images - others).float().square().mean((1, 2, 3)).sqrt()
    # The root has no finite slope at 0, where two outputs are equal.
    made_apart = ((made - made_of_others).float().square().mean((1, 2, 3)) + 1e-14).sqrt()
    return (apart / (made_apart + 1e-7)).mean()
