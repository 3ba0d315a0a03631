"""`train`: as `unbackdoor.training.fit`, with batches of rows instead of images."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.training import History, Runtime
from unbackdoor.training.run import Run
from unbackdoor.training.schedule import cosine, one_cycle

WARM_UP = 1000
"""Steps in which "warm-cosine" rises, unless a tenth of all is fewer."""


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
        ResumeError: `resume` is damaged, or belongs to another run.
        UnbackdoorError: the loss stopped being a number.
    """
    return _Run(stage, plan, runtime, description).go(resume, description)


class _Run(Run):
    """One run of `train`."""

    save_seconds: ClassVar[float] = 20.0
    """Some stages have many short epochs."""

    def __init__(self, stage: Stage, plan: Plan, runtime: Runtime, description: str) -> None:
        super().__init__(
            stage.module.to(runtime.place),
            _optimizer(stage.module, plan),
            rows=stage.rows,
            batch_size=plan.batch_size,
            epochs=plan.epochs,
            ema=plan.ema,
            runtime=runtime,
            names=(description,),
        )
        self.stage = stage
        self.plan = plan
        self.description = description

    def identity(self) -> object:
        """Return plan and stage."""
        return self.description, self.plan, self.stage.identity()

    def computed(self) -> frozenset[str]:
        """Return what the stage computed of the data."""
        return self.stage.computed()

    def copied(self) -> _Run:
        """Return a copy."""
        return _Run(copy.deepcopy(self.stage), self.plan, self.runtime, self.description)

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate by the plan."""
        return self.plan.rate(step, steps)

    def step(self, rows: Int[Tensor, "b"], draws: torch.Generator, step: int) -> Float[Tensor, ""]:
        """Do one step of the stage."""
        with self.runtime.autocast():
            loss = self.stage.loss(rows, draws)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.plan.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.plan.clip)
        self.optimizer.step()
        return loss.detach()


def _optimizer(module: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.Adam if plan.optimizer == "Adam" else torch.optim.AdamW
    return kind(groups, lr=plan.learning_rate, fused=True)
