"""Fine-tuning on clean samples, some of them with a trigger and their true label, as MESA repairs.

Qiao, Yang, Li (NeurIPS 2019): SGD at 0.001 with momentum, no decay, no augmentation, batch normalisation in training
mode. Each sample of each batch is stamped with a small probability, 1 % in the published code, which is little where
there are few samples. Where the triggers come from is all that differs between the defences. Here every image has a
place of its own for the trigger; in the published code the batch has one.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.scan.patches import draw_places, stamped
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit


class Triggers(Protocol):
    """A source of triggers, all of one size."""

    def identity(self) -> str:
        """Return a digest of all that decides which triggers are drawn."""
        ...

    def draw(self, count: int, epoch: int, draws: torch.Generator) -> Float[Tensor, "n c p p"]:
        """Return triggers in [0, 1], on the CPU, for an epoch of the schedule."""
        ...


class FixedPatches:
    """Patches that take turns.

    Args:
        patches: in [0, 1], one or more.
    """

    def __init__(self, patches: Float[Tensor, "m c p p"]) -> None:
        self.patches = patches.cpu()

    def identity(self) -> str:
        """Return a digest of the patches."""
        return hashlib.sha256(self.patches.contiguous().numpy().tobytes()).hexdigest()

    def draw(self, count: int, epoch: int, draws: torch.Generator) -> Float[Tensor, "n c p p"]:
        """Return patches, each drawn with the same probability."""
        return self.patches[torch.randint(len(self.patches), (count,), generator=draws)]


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How a model is retrained on triggers.

    Attributes:
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, constant.
        stamped: probability with which an image carries a trigger, above 0 and at most 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    stamped: float = 0.01
    augmentation: str = "none"

    def __post_init__(self) -> None:
        self._recipe()

    def _recipe(self) -> Recipe:
        return fine_tuning(
            self.epochs, self.batch_size, self.learning_rate, self.augmentation, schedule="constant", weight_decay=0.0
        )

    def fit(
        self, model: nn.Module, clean: ImageSet, triggers: Triggers, runtime: Runtime, resume: Path | None
    ) -> History:
        """Retrain `model` in place (see `training.fit`)."""
        hook = _Stamping(self.stamped, triggers)
        return fit(
            model, clean, self._recipe(), runtime, hook=hook, resume=resume, description="retraining on triggers"
        )


def check_stamped(method: str, stamped: float) -> None:
    """Check the probability with which images are stamped.

    Raises:
        InputError: it is none.
    """
    if not 0 < stamped <= 1:
        raise InputError(f"{method}: the stamped share must be above 0 and at most 1, found {stamped}")


class _Stamping(Hook):
    """Puts triggers on some images of each batch, after the augmentation; labels stay."""

    def __init__(self, share: float, triggers: Triggers) -> None:
        self.share, self.triggers = share, triggers

    def identity(self) -> object:
        """Return what decides which images carry which triggers."""
        return (type(self).__name__, self.share, self.triggers.identity())

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with triggers on images that are drawn."""
        chosen = (torch.rand(len(batch.images), generator=generator) < self.share).nonzero().squeeze(1)
        if not len(chosen):
            return batch
        # A shorter training goes through the same epochs.
        epoch = int(batch.progress * self.recipe.epochs + 1e-6)
        patches = self.triggers.draw(len(chosen), epoch, generator)
        channels, height, width = batch.images.shape[1:]
        places = draw_places(len(chosen), (channels, height, width), patches.shape[-1], generator)
        place = batch.images.device
        images, rows = batch.images.clone(), chosen.to(place)
        images[rows] = stamped(images[rows], patches.to(place), places.to(place))
        return replace(batch, images=images)
