"""`Hook`: what a method changes in the training loop."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.training.recipe import Recipe
from unbackdoor.training.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What the loop hands to a hook.

    Attributes:
        images: in [0, 1], on the device.
        targets: class numbers (B,), or class probabilities (B, K) after mixing.
        rows: the images' rows in the data set.
        progress: share of the training that is done, 0 to 1.
    """

    images: Float[Tensor, "b c h w"]
    targets: Tensor
    rows: Int[Tensor, "b"]
    progress: float = 0.0


class Hook:
    """The plain loop: cross-entropy and one optimiser step. A method overrides what it changes."""

    before_augmentation: ClassVar[bool] = False
    """Whether `batch` gets images as they are in the data, and what it makes of them is augmented; for triggers that
    would betray themselves at the edges that augmentation draws, which images in use do not have."""
    takes_shrunken: ClassVar[bool] = False
    """Whether `batch` gets images shrunken already in epochs of low resolution, for triggers of any size that shrinking
    would destroy. Not together with `before_augmentation`."""

    def identity(self) -> object:
        """Return what, beside recipe and data, decides the result; a resumed run must have the same."""
        return type(self).__name__

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Prepare, once, before the first step (also of a resumed run)."""
        self.recipe = recipe
        self.runtime = runtime

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch to train on; attacks that control training poison it here.

        Images are augmented and have their full size, but see `before_augmentation` and `takes_shrunken`.
        """
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the loss to minimise."""
        logits = model(batch.images)
        return F.cross_entropy(logits, batch.targets, label_smoothing=self.recipe.label_smoothing)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step and return the loss before it, detached."""
        loss = self.backward(model, batch, optimizer)
        optimizer.step()
        return loss

    def backward(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Leave the loss's gradients in the parameters, for a step; return the loss, detached."""
        with self.runtime.autocast():
            loss = self.loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def finished(self, model: nn.Module) -> bool:
        """Return whether training ends with the epoch that was just done, before the schedule's end."""
        return False

    def for_timing(self) -> Self:
        """Return a copy whose steps take as long as they will on average; by default they always do."""
        return copy.deepcopy(self)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs beside the model: tensors, numbers and strings only."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
