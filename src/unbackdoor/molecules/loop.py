"""The training loop of this house: batches of rows instead of images, and else as `unbackdoor.training.fit`."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.errors import InputError, UnbackdoorError
from unbackdoor.training import History, Runtime, affordable
from unbackdoor.training.average import Average
from unbackdoor.training.resume import Resume, hash_state
from unbackdoor.training.schedule import cosine, one_cycle

WARM_UP = 1000
"""Steps in which "warm-cosine" rises, unless a tenth of all is fewer."""

SAVE_SECONDS = 20
"""A state is written after an epoch if the last one is older than this: some stages have many short epochs."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one stage is trained.

    Attributes:
        epochs: passes over the pairs, 1 or more.
        batch_size: rows a step; batches are made equal in size, so a few random rows may sit out an epoch.
        optimizer: "Adam" or "AdamW".
        learning_rate: the peak.
        schedule: "one-cycle", "warm-cosine" (up to 1,000 steps of linear rise, then half a cosine) or "decay" (0.9 an
            epoch).
        weight_decay: on matrices alone, 0 or more.
        clip: largest norm of the gradient; 0: any.
        ema: decay a step of the averaged weights that are returned; 0 returns the last weights.
    """

    epochs: int = 50
    batch_size: int = 256
    optimizer: Literal["Adam", "AdamW"] = "AdamW"
    learning_rate: float = 1e-3
    schedule: Literal["one-cycle", "warm-cosine", "decay"] = "warm-cosine"
    weight_decay: float = 0.0
    clip: float = 0.0
    ema: float = 0.0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(
                f"epochs must be 1 or more and the batch size 2 or more, found {self.epochs} and {self.batch_size}"
            )
        if self.optimizer not in ("Adam", "AdamW") or self.schedule not in ("one-cycle", "warm-cosine", "decay"):
            raise InputError(
                "the optimizer is Adam or AdamW and the schedule one-cycle, warm-cosine or decay, found"
                f" {self.optimizer!r} and {self.schedule!r}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"the learning rate must be a positive number, found {self.learning_rate}")
        if not (0 <= self.weight_decay < math.inf and 0 <= self.clip < math.inf and 0 <= self.ema < 1):
            raise InputError(
                "weight decay and clip must be numbers of 0 or more, and ema 0 or more and below 1, found"
                f" {self.weight_decay}, {self.clip} and {self.ema}"
            )

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step (0-based) of so many."""
        if self.schedule == "one-cycle":
            return self.learning_rate * one_cycle(step, steps)
        if self.schedule == "decay":
            return float(self.learning_rate * 0.9 ** (self.epochs * step // steps))
        rise = min(WARM_UP, max(1, steps // 10))
        return self.learning_rate * min((step + 1) / rise, cosine(max(0, step - rise), max(1, steps - rise)))


class Stage(ABC):
    """What one stage learns.

    Args:
        module: everything that is trained.
        rows: in the training data.
    """

    def __init__(self, module: nn.Module, rows: int) -> None:
        self.module = module
        self.rows = rows

    @abstractmethod
    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the loss of a batch.

        Args:
            rows: on the device.
            generator: for all that is drawn; on the CPU.
        """

    @abstractmethod
    def identity(self) -> object:
        """Return what, beside plan and weights, decides the result: data and options."""

    def computed(self) -> frozenset[str]:
        """Return the names of the module's state that was computed of the data before training.

        On a GPU it may differ in its last bits from one time to the next, so it cannot tell one run from another; a
        resumed run takes it back from its file.
        """
        return frozenset()


def train(
    stage: Stage, plan: Plan, runtime: Runtime, *, resume: Path | None = None, description: str = "training"
) -> History:
    """Train a stage's module in place and leave it in evaluation mode.

    Args:
        stage: what is trained; its data are on the device.
        plan: how; a budget of the runtime shortens its epochs.
        runtime: its seed decides everything that is drawn, each epoch by itself.
        resume: a file that is written after epochs; if it is there and belongs to this very run, training goes on
            after the epoch that it holds. It stays.
        description: for the progress bar.

    Returns:
        The number of epochs and the mean loss of each.

    Raises:
        InputError: `resume` belongs to another run.
        UnbackdoorError: the loss stopped being a number.
    """
    run = _Run(stage, plan, runtime, description)
    saved = Resume(resume, run.fingerprint()) if resume else None
    state = saved.read() if saved else None
    if state:
        run.load_state_dict(state)
        runtime.progress.note(f"{description}: resumed after epoch {len(run.history.loss)} of {run.history.epochs}")
    else:
        run.history.epochs = run.affordable_epochs()
    remaining = range(len(run.history.loss), run.history.epochs)
    written = time.monotonic()
    with runtime.progress.bar(description, len(remaining)) as advance:
        for epoch in remaining:
            loss = run.epoch(epoch)
            if not math.isfinite(loss):
                raise UnbackdoorError(
                    f"{description}: the loss is no longer a number in epoch {epoch + 1}; lower the learning rate"
                )
            run.history.loss.append(loss)
            if saved and (time.monotonic() - written > SAVE_SECONDS or epoch + 1 == run.history.epochs):
                saved.write(run.state_dict())
                written = time.monotonic()
            advance()
    if run.average:
        stage.module.load_state_dict(run.average.model.state_dict())
    stage.module.eval()
    return run.history


class _Run:
    """One run of `train`: everything that changes while it goes on."""

    def __init__(self, stage: Stage, plan: Plan, runtime: Runtime, description: str) -> None:
        self.stage = stage
        self.plan = plan
        self.runtime = runtime
        self.description = description
        stage.module.to(runtime.place)
        self.optimizer = _optimizer(stage.module, plan)
        self.average = Average(stage.module, plan.ema) if plan.ema else None
        self.history = History(epochs=plan.epochs)
        self.batches = math.ceil(stage.rows / plan.batch_size)

    def epoch(self, epoch: int) -> float:
        """Do one epoch and return its mean loss."""
        draws = self.runtime.generator(self.description, "draws", epoch)
        # Dropout draws from the global generator.
        torch.manual_seed(self.runtime.generator(self.description, "global", epoch).initial_seed() >> 1)
        self.stage.module.train()
        each = self.stage.rows // self.batches
        order = torch.randperm(self.stage.rows, generator=self.runtime.generator(self.description, "order", epoch))
        total = torch.zeros((), device=self.runtime.place)
        for number, rows in enumerate(order[: self.batches * each].view(self.batches, each).to(self.runtime.place)):
            step = epoch * self.batches + number
            for group in self.optimizer.param_groups:
                group["lr"] = self.plan.rate(step, self.history.epochs * self.batches)
            total += self.step(rows, draws)
            if self.average:
                self.average.update(step)
        return float(total) / self.batches

    def step(self, rows: Int[Tensor, "b"], draws: torch.Generator) -> Float[Tensor, ""]:
        """Do one step and return the loss before it, detached."""
        with self.runtime.autocast():
            loss = self.stage.loss(rows, draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.stage.module.parameters(), self.plan.clip)
        self.optimizer.step()
        return loss.detach()

    def affordable_epochs(self) -> int:
        """Return how many epochs fit the runtime's budget, by timing steps on a throw-away copy."""
        if self.runtime.budget is None:
            return self.plan.epochs
        trial = _Run(copy.deepcopy(self.stage), self.plan, self.runtime, self.description)
        trial.stage.module.train()
        rows = torch.arange(self.stage.rows // self.batches, device=self.runtime.place)
        return affordable(
            self.plan.epochs,
            self.batches,
            lambda: float(trial.step(rows, self.runtime.generator("trial"))),
            self.runtime,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "module": self.stage.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.model.state_dict() if self.average else {},
            "epochs": self.history.epochs,
            "loss": self.history.loss,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.stage.module.load_state_dict(state["module"])
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
        digest.update(repr((self.description, self.plan, runtime, self.stage.identity())).encode())
        hash_state(digest, self.stage.module, self.stage.computed())
        return digest.hexdigest()


def _optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if plan.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=plan.learning_rate)
