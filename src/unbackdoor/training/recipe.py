"""`Recipe`: how a network is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from unbackdoor.data.augment import AUGMENTATIONS
from unbackdoor.errors import InputError
from unbackdoor.training.schedule import schedule_named


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: passes over the data, 1 or more.
        batch_size: images a step; batches are made equal in size, so a few random rows may sit out an epoch.
        optimizer: "SGD" (Nesterov if `nesterov`) or "Adam" (the AMSGrad variant, as BackdoorBench runs it).
        learning_rate: the peak.
        momentum: of SGD, 0 or more and below 1.
        nesterov: look-ahead momentum of SGD.
        weight_decay: on all parameters, 0 or more.
        schedule: "one-cycle", "cosine", "constant", or "cosine:STEPS" (half-period in steps).
        label_smoothing: 0 to 1.
        ema: decay a step of the averaged weights that the run returns; 0 returns the last weights.
        augmentation: "none", "crop", "crop-flip", "light", "rotate-translate", "cutmix" or "strong".
        low_resolution: share of the epochs, from the first, that see images at three quarters of their side;
            they cost half and cost little accuracy. 0 to 1. A network that cannot take such images, or an attack whose
            trigger they would destroy, sees whole ones.
        train_mode: whether batch normalisation uses and updates batch statistics.
    """

    epochs: int = 14
    batch_size: int = 128
    optimizer: Literal["SGD", "Adam"] = "SGD"
    learning_rate: float = 0.2
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    label_smoothing: float = 0.1
    ema: float = 0.996
    augmentation: str = "light"
    low_resolution: float = 0.5
    train_mode: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise InputError(f"epochs and batch size must be 1 or more, found {self.epochs} and {self.batch_size}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise InputError(f"the learning rate must be a positive number, found {self.learning_rate}")
        if not (0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise InputError(
                "momentum must be 0 or more and below 1, and weight decay a number of 0 or more,"
                f" found {self.momentum} and {self.weight_decay}"
            )
        if self.optimizer not in ("SGD", "Adam"):
            raise InputError(f"unknown optimizer {self.optimizer!r}; known: SGD, Adam")
        if not (0 <= self.ema < 1 and 0 <= self.label_smoothing < 1 and 0 <= self.low_resolution <= 1):
            raise InputError(
                "ema, label smoothing and low resolution must lie between 0 and 1, found"
                f" {self.ema}, {self.label_smoothing} and {self.low_resolution}"
            )
        if self.augmentation not in AUGMENTATIONS:
            raise InputError(f"unknown augmentation {self.augmentation!r}; known: {', '.join(AUGMENTATIONS)}")
        schedule_named(self.schedule, planned=1)


def enough_epochs(recipe: Recipe, rows: int, least_steps: int) -> Recipe:
    """Return a recipe with its own epochs, or more where these take too few steps to learn anything.

    Args:
        recipe: for many rows.
        rows: that there are.
        least_steps: of the optimiser, at least.
    """
    return replace(recipe, epochs=max(recipe.epochs, math.ceil(least_steps / math.ceil(rows / recipe.batch_size))))


def refuse_mixing(method: str, augmentation: str) -> None:
    """Raise InputError if the augmentation mixes images, for methods that need each image whole, with its own label."""
    if augmentation in AUGMENTATIONS and AUGMENTATIONS[augmentation].mixes:
        whole = [name for name, known in AUGMENTATIONS.items() if not known.mixes]
        raise InputError(
            f"{method} needs images that are not mixed with others, and {augmentation} mixes them; choose one of"
            f" {', '.join(whole)}"
        )
