"""The one training loop: attacks, secure training and purifiers all run through `fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.data.augment import AUGMENTATIONS, Draw, to_float
from unbackdoor.training.fits import check_takes, refusal
from unbackdoor.training.history import History
from unbackdoor.training.hook import Batch, Hook
from unbackdoor.training.recipe import Recipe
from unbackdoor.training.run import Run
from unbackdoor.training.runtime import Runtime
from unbackdoor.training.schedule import schedule_named

LOW_RESOLUTION = 0.75
"""Share of the side that images keep in the low-resolution epochs."""


def fit(
    model: nn.Module,
    data: ImageSet,
    recipe: Recipe,
    runtime: Runtime,
    *,
    hook: Hook | None = None,
    resume: Path | None = None,
    description: str = "training",
    names: tuple[str, ...] = (),
) -> History:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: images in [0, 1] to logits; moved to the runtime's device.
        data: what it learns.
        recipe: how; a budget of the runtime shortens its epochs.
        runtime: where; its seed decides order and augmentation, each epoch by itself, so that a resumed run
            sees what the uninterrupted one would have seen.
        hook: what a method changes; the plain loop if None.
        resume: a file that is written after each epoch; if it is there and belongs to this very run, training
            goes on after the last finished epoch, and a finished run gives its model and history again without
            training. It stays: whoever saves the model removes it then, and not before.
        description: for the progress bar.
        names: of a stage, where another one has as many rows: without them both would see the same crops and flips in
            the same order.

    Returns:
        The number of epochs and the mean loss of each.

    Raises:
        InputError: the network cannot take images of this size.
        ResumeError: `resume` is damaged, or belongs to another run.
        UnbackdoorError: the loss stopped being a number.
    """
    run = _Run(runtime.settle(model), data.to(runtime.place), recipe, runtime, hook or Hook(), names)
    return run.go(resume, description)


class _Run(Run):
    """One run of `fit`."""

    drawn: ClassVar[str] = "augment"

    def __init__(
        self,
        model: nn.Module,
        data: ImageSet,
        recipe: Recipe,
        runtime: Runtime,
        hook: Hook,
        names: tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            model,
            _optimizer(model, recipe),
            rows=len(data),
            batch_size=recipe.batch_size,
            epochs=recipe.epochs,
            ema=recipe.ema,
            runtime=runtime,
            names=names,
        )
        self.forward = runtime.compiled(model)
        self.data = data
        self.recipe = recipe
        self.hook = hook
        self.augmentation = AUGMENTATIONS[recipe.augmentation]
        self.schedule = schedule_named(recipe.schedule, recipe.epochs * self.batches)
        check_takes(model, data, runtime)
        channels, *sides = data.shape
        height, width = (int(LOW_RESOLUTION * side) for side in sides)
        shrinks = recipe.low_resolution > 0 and not refusal(model, (channels, height, width), runtime)
        self.low_resolution = recipe.low_resolution if shrinks else 0.0
        self.small = False

    def identity(self) -> object:
        """Return recipe, hook and data."""
        return self.recipe, self.hook.identity(), self.data.digest()

    def copied(self) -> _Run:
        """Return a copy with a hook for timing."""
        hook = self.hook.for_timing()
        return _Run(copy.deepcopy(self.module), self.data, self.recipe, self.runtime, hook, self.names)

    def begin(self) -> None:
        """Prepare the hook."""
        self.hook.begin(self.module, self.recipe, self.runtime)

    def set_mode(self) -> None:
        """Put the model into the recipe's mode."""
        self.module.train(self.recipe.train_mode)

    def finished(self) -> bool:
        """Return whether the hook has reached its end."""
        return self.hook.finished(self.module)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate by the recipe's schedule."""
        return self.recipe.learning_rate * self.schedule(step, steps)

    def epoch(self, epoch: int, advance: Callable[[], None]) -> float:
        """Do one epoch, the first ones with small images."""
        self.small = epoch < round(self.low_resolution * self.history.epochs)
        return super().epoch(epoch, advance)

    def step(self, rows: Int[Tensor, "b"], draws: torch.Generator, step: int) -> Float[Tensor, ""]:
        """Do one step of the hook."""
        return self.hook.update(self.forward, self.batch(rows, draws, step), self.optimizer)

    def batch(self, rows: Int[Tensor, "b"], draws: torch.Generator, step: int) -> Batch:
        """Return the augmented images at `rows`, as the hook wants them."""
        progress = step / (self.history.epochs * self.batches)
        batch = Batch(images=self.data.images[rows], targets=self.data.labels[rows], rows=rows, progress=progress)
        draw = self.augmentation.draw((len(rows), *self.data.shape), draws)
        if self.hook.before_augmentation:
            batch = self.hook.batch(self.forward, replace(batch, images=to_float(batch.images)), draws)
            batch = self.augmented(batch, draw)
        else:
            batch = self.augmented(batch, draw)
            # Most triggers are made for whole images.
            if self.small and self.hook.takes_shrunken:
                batch = _shrunken(batch)
            batch = self.hook.batch(self.forward, batch, draws)
        if self.small and not self.hook.takes_shrunken:
            batch = _shrunken(batch)
        return replace(batch, images=self.runtime.layout(batch.images))

    def augmented(self, batch: Batch, draw: tuple[Draw, ...]) -> Batch:
        """Return the batch with its images changed as drawn, and targets that fit them."""
        images, targets = self.augmentation.apply(batch.images, draw), batch.targets
        if self.augmentation.mixes:
            targets = self.augmentation.mix(F.one_hot(targets, self.data.classes).float(), draw)
        return replace(batch, images=images, targets=targets)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, the hook's state with it."""
        return {**super().state_dict(), "hook": self.hook.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        super().load_state_dict(state)
        self.hook.load_state_dict(state["hook"])


def _shrunken(batch: Batch) -> Batch:
    return replace(batch, images=F.interpolate(batch.images, scale_factor=LOW_RESOLUTION, mode="area"))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.optimizer == "Adam":
        return torch.optim.Adam(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay, amsgrad=True)
    return torch.optim.SGD(
        parameters,
        recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov and recipe.momentum > 0,
    )
