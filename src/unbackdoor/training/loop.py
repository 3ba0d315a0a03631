"""The one training loop: attacks, secure training and purifiers all run through `fit`."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.data.augment import AUGMENTATIONS
from unbackdoor.errors import UnbackdoorError
from unbackdoor.training.average import Average
from unbackdoor.training.budget import affordable
from unbackdoor.training.fits import check_takes, refusal
from unbackdoor.training.history import History
from unbackdoor.training.hook import Batch, Hook
from unbackdoor.training.recipe import Recipe
from unbackdoor.training.resume import Resume, hash_state
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

    Returns:
        The number of epochs and the mean loss of each.

    Raises:
        InputError: `resume` belongs to another run, or the network cannot take images of this size.
        UnbackdoorError: the loss stopped being a number.
    """
    run = _Run(runtime.settle(model), data.to(runtime.place), recipe, runtime, hook or Hook())
    saved = Resume(resume, run.fingerprint()) if resume else None
    state = saved.read() if saved else None
    if state:
        run.load_state_dict(state)
        runtime.progress.note(f"{description}: resumed after epoch {len(run.history.loss)} of {run.history.epochs}")
    else:
        run.history.epochs = run.affordable_epochs()
    run.hook.begin(model, recipe, runtime)
    remaining = range(len(run.history.loss), run.history.epochs)
    with runtime.progress.bar(description, len(remaining) * run.batches) as advance:
        for epoch in remaining:
            loss = run.epoch(epoch, advance)
            if not math.isfinite(loss):
                raise UnbackdoorError(
                    f"{description}: the loss is no longer a number in epoch {epoch + 1}; lower the learning rate"
                )
            run.history.loss.append(loss)
            if run.hook.finished(model):
                run.history.epochs = epoch + 1
            if saved:
                saved.write(run.state_dict())
            if epoch + 1 == run.history.epochs:
                break
    if run.average:
        model.load_state_dict(run.average.model.state_dict())
    model.eval()
    return run.history


class _Run:
    """One run of `fit`: everything that changes while it goes on."""

    def __init__(self, model: nn.Module, data: ImageSet, recipe: Recipe, runtime: Runtime, hook: Hook) -> None:
        self.model = model
        self.forward = runtime.compiled(model)
        self.data = data
        self.recipe = recipe
        self.runtime = runtime
        self.hook = hook
        self.optimizer = _optimizer(model, recipe)
        self.average = Average(model, recipe.ema) if recipe.ema else None
        self.history = History(epochs=recipe.epochs)
        self.batches = math.ceil(len(data) / recipe.batch_size)
        self.augmentation = AUGMENTATIONS[recipe.augmentation]
        self.schedule = schedule_named(recipe.schedule)
        check_takes(model, data, runtime)
        channels, *sides = data.shape
        height, width = (int(LOW_RESOLUTION * side) for side in sides)
        shrinks = recipe.low_resolution > 0 and not refusal(model, (channels, height, width), runtime)
        self.low_resolution = recipe.low_resolution if shrinks else 0.0

    def epoch(self, epoch: int, advance: Callable[[], None]) -> float:
        """Do one epoch and return its mean loss."""
        draws = self.runtime.generator("augment", epoch)
        # Dropout and the like draw from the global generator.
        torch.manual_seed(self.runtime.generator("global", epoch).initial_seed() >> 1)
        self.model.train(self.recipe.train_mode)
        # Batches of equal size keep shapes the same; the few rows beyond sit this epoch out.
        each = len(self.data) // self.batches
        order = torch.randperm(len(self.data), generator=self.runtime.generator("order", epoch))
        rows_of_batches = order[: self.batches * each].view(self.batches, each).to(self.runtime.place)
        small = epoch < round(self.low_resolution * self.history.epochs)
        total = torch.zeros((), device=self.runtime.place)
        for number, rows in enumerate(rows_of_batches):
            step = epoch * self.batches + number
            for group in self.optimizer.param_groups:
                group["lr"] = self.recipe.learning_rate * self.schedule(step, self.history.epochs * self.batches)
            total += self.hook.update(self.forward, self.batch(rows, draws, small, step), self.optimizer)
            if self.average:
                self.average.update(step)
            advance()
        return float(total) / self.batches

    def batch(self, rows: Int[Tensor, "b"], draws: torch.Generator, small: bool, step: int) -> Batch:
        """Return the augmented images at `rows`, as the hook wants them."""
        images, labels = self.data.images[rows], self.data.labels[rows]
        draw = self.augmentation.draw((len(rows), *self.data.shape), draws)
        augmented = self.augmentation.apply(images, draw)
        targets = labels
        if self.augmentation.mixes:
            targets = self.augmentation.mix(F.one_hot(labels, self.data.classes).float(), draw)
        progress = step / (self.history.epochs * self.batches)
        batch = Batch(images=augmented, targets=targets, rows=rows, progress=progress)
        # Most triggers are made for whole images.
        if small and self.hook.takes_shrunken:
            batch = _shrunken(batch)
        batch = self.hook.batch(self.forward, batch, draws)
        if small and not self.hook.takes_shrunken:
            batch = _shrunken(batch)
        return replace(batch, images=self.runtime.layout(batch.images))

    def affordable_epochs(self) -> int:
        """Return how many epochs fit the runtime's budget, by timing steps on a throw-away copy."""
        if self.runtime.budget is None:
            return self.recipe.epochs
        trial = _Run(copy.deepcopy(self.model), self.data, self.recipe, self.runtime, self.hook.for_timing())
        rows = torch.arange(len(self.data) // self.batches, device=self.runtime.place)

        def prepare() -> None:
            trial.hook.begin(trial.model, self.recipe, self.runtime)
            trial.model.train(self.recipe.train_mode)

        def step() -> None:
            batch = trial.batch(rows, self.runtime.generator("trial"), False, 0)
            float(trial.hook.update(trial.forward, batch, trial.optimizer))

        epochs = affordable(self.recipe.epochs, self.batches, step, self.runtime, prepare)
        return epochs if epochs == self.recipe.epochs else self.hook.shortened(epochs, self.batches)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "hook": self.hook.state_dict(),
            "average": self.average.model.state_dict() if self.average else {},
            "epochs": self.history.epochs,
            "loss": self.history.loss,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.hook.load_state_dict(state["hook"])
        if self.average:
            self.average.model.load_state_dict(state["average"])
        self.history = History(epochs=state["epochs"], loss=state["loss"])
        if not self.runtime.threads:
            # Another number of threads adds up in another order, and would lead elsewhere.
            torch.set_num_threads(state["threads"])

    def fingerprint(self) -> str:
        """Return a digest of everything that decides what the run computes."""
        digest = hashlib.sha256()
        runtime = (self.runtime.seed, self.runtime.precision, self.runtime.budget)
        digest.update(repr((self.recipe, runtime, self.hook.identity())).encode())
        digest.update(self.data.digest().encode())
        hash_state(digest, self.model)
        return digest.hexdigest()


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
