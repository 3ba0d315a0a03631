"""`Run`: what every training loop of this house does, from epoch to epoch."""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.errors import DivergedError, InputError
from unbackdoor.training.average import Average
from unbackdoor.training.budget import affordable
from unbackdoor.training.history import History
from unbackdoor.training.resume import Resume, hash_state
from unbackdoor.training.runtime import Runtime

LONE = "Expected more than 1 value per channel"
"""What PyTorch says of batch normalisation in training that gets a single value of each channel."""


class Run(ABC):
    """One run of a training loop: everything that changes while it goes on.

    Args:
        module: what is trained, on the device.
        optimizer: of its parameters.
        rows: of the training data.
        batch_size: rows a step; batches are made equal in size, so a few random rows may sit out an epoch.
        epochs: that are planned.
        ema: decay a step of the averaged weights that are left in the module at the end; 0 leaves the last weights.
        runtime: its seed decides everything that is drawn, each epoch by itself, so that a resumed run sees what the
            uninterrupted one would have seen.
        names: before the names of what is drawn, where several runs share a seed.
    """

    save_seconds: ClassVar[float] = 0.0
    """A state is written after an epoch if the last one is at least as old."""
    long_save: ClassVar[float] = 0.25
    """Seconds of the processor from which on writing a state is not done after every epoch, but as often as costs a
    twentieth of the time."""
    drawn: ClassVar[str] = "draws"
    """Name of what a step draws; another name would be another seed."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        rows: int,
        batch_size: int,
        epochs: int,
        ema: float,
        runtime: Runtime,
        names: tuple[str, ...] = (),
    ) -> None:
        self.module, self.optimizer, self.rows, self.runtime, self.names = module, optimizer, rows, runtime, names
        self.average = Average(module, ema) if ema else None
        self.history = History(epochs=epochs)
        self.batches = math.ceil(rows / batch_size)

    @abstractmethod
    def identity(self) -> object:
        """Return what, beside runtime and weights, decides the result."""

    @abstractmethod
    def copied(self) -> Self:
        """Return a copy whose steps are timed and thrown away."""

    @abstractmethod
    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step (0-based) of so many."""

    @abstractmethod
    def step(self, rows: Int[Tensor, "b"], draws: torch.Generator, step: int) -> Float[Tensor, ""]:
        """Do one step.

        Args:
            rows: of the batch, on the device.
            draws: for all that is drawn; on the CPU.
            step: its number, 0-based.

        Returns:
            The loss before it, detached.
        """

    def computed(self) -> frozenset[str]:
        """Return the names of the module's state that tells nothing of the run's identity."""
        return frozenset()

    def begin(self) -> None:  # noqa: B027 (most need nothing)
        """Prepare, once, before the first step (also of a resumed run)."""

    def set_mode(self) -> None:
        """Put the module into the mode in which it is trained."""
        self.module.train()

    def finished(self) -> bool:
        """Return whether training ends with the epoch that was just done, before the plan's end."""
        return False

    def go(self, resume: Path | None, description: str) -> History:
        """Do all epochs that are left, and leave the module in evaluation mode.

        Args:
            resume: a file that is written after epochs; if it is there and belongs to this very run, training goes on
                after the last epoch that it holds. It stays.
            description: for the progress bar.

        Raises:
            ResumeError: `resume` is damaged, or belongs to another run.
            DivergedError: the loss stopped being a number.
        """
        saved = Resume(resume, self.fingerprint()) if resume else None
        state = saved.read() if saved else None
        if state:
            self.load_state_dict(state)
            self.runtime.progress.note(
                f"{description}: resumed after epoch {len(self.history.loss)} of {self.history.epochs}"
            )
        else:
            self.history.epochs = self.affordable_epochs()
        self.begin()
        remaining = range(len(self.history.loss), self.history.epochs)
        written, pause = time.monotonic(), self.save_seconds
        with self.runtime.progress.bar(description, len(remaining) * self.batches) as advance:
            for epoch in remaining:
                loss = self.epoch(epoch, advance)
                if not math.isfinite(loss):
                    raise DivergedError(
                        f"{description}: the loss is no longer a number in epoch {epoch + 1}; lower the learning rate"
                    )
                self.history.loss.append(loss)
                if self.finished():
                    self.history.epochs = epoch + 1
                last = epoch + 1 == self.history.epochs
                if saved and (last or time.monotonic() - written >= pause):
                    begun = time.process_time()
                    saved.write(self.state_dict())
                    cost, written = time.process_time() - begun, time.monotonic()
                    if cost >= self.long_save:
                        pause = max(self.save_seconds, 20 * cost)
                if last:
                    break
        if self.average:
            self.module.load_state_dict(self.average.model.state_dict())
        self.module.eval()
        return self.history

    def epoch(self, epoch: int, advance: Callable[[], None]) -> float:
        """Do one epoch and return its mean loss."""
        draws = self.runtime.generator(*self.names, self.drawn, epoch)
        # Dropout and the like draw from the global generator.
        torch.manual_seed(self.runtime.generator(*self.names, "global", epoch).initial_seed() >> 1)
        self.set_mode()
        each = self.rows // self.batches
        order = torch.randperm(self.rows, generator=self.runtime.generator(*self.names, "order", epoch))
        total = torch.zeros((), device=self.runtime.place)
        for number, rows in enumerate(order[: self.batches * each].view(self.batches, each).to(self.runtime.place)):
            step = epoch * self.batches + number
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step, self.history.epochs * self.batches)
            try:
                total += self.step(rows, draws, step)
            except ValueError as error:
                if LONE not in str(error):
                    raise
                raise InputError(
                    "batches of one image have no statistics for this network's batch normalisation; give more images,"
                    " or larger batches"
                ) from error
            if self.average:
                self.average.update(step)
            advance()
        return float(total) / self.batches

    def affordable_epochs(self) -> int:
        """Return how many epochs fit the runtime's budget, by timing steps of a throw-away copy."""
        if self.runtime.budget is None:
            return self.history.epochs
        trial = self.copied()
        rows = torch.arange(self.rows // self.batches, device=self.runtime.place)

        def prepare() -> None:
            trial.begin()
            trial.set_mode()

        def step() -> None:
            float(trial.step(rows, self.runtime.generator("trial"), 0))

        return affordable(self.history.epochs, self.batches, step, self.runtime, prepare)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.model.state_dict() if self.average else {},
            "epochs": self.history.epochs,
            "loss": self.history.loss,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
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
        digest.update(repr((self.identity(), runtime)).encode())
        hash_state(digest, self.module, self.computed())
        return digest.hexdigest()
