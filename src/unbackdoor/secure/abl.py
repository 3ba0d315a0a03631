"""ABL: isolate what is learned too easily, train on the rest, and unlearn what was isolated.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021).

1. Train under a loss that does not let the loss fall below gamma, and isolate the samples whose loss is lowest.
2. Go on with the other samples, with the plain loss.
3. Unlearn the isolated samples: gradient ascent.

Schedules are those of BackdoorBench's version. The loss is bounded by local gradient ascent, as in the authors' own
code (see `unbackdoor.training.bounded`); BackdoorBench's flooding has the same gradient. BackdoorBench's unlearning has
a rate of 1e-4 whatever is configured, and so has ours by default. The losses by which samples are isolated are computed
in one batched pass (there: image by image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.secure.base import SecureTrainer, Trained
from unbackdoor.secure.isolation import lowest
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, losses_of, stage
from unbackdoor.training.bounded import Bounded

LATE = 2 / 3
"""Share of the second stage after which its rate is a tenth."""


@dataclass(frozen=True, kw_only=True)
class ABL(SecureTrainer):
    """Isolate the samples that are learned too easily, train on the others, and unlearn the isolated ones.

    Attributes:
        isolation_epochs: passes over all data, under the bounded loss.
        gamma: at which the loss is kept there, 0 or more.
        isolated: share of the data that is isolated, above 0 and below 1.
        epochs: passes over the other data.
        learning_rate: of SGD in both; a tenth in the last third of the latter.
        unlearning_epochs: passes over the isolated data.
        unlearning_rate: of SGD there, constant.
        batch_size: images a step.
        weight_decay: of SGD.
        augmentation: in all stages; see `Recipe`.
    """

    isolation_epochs: int = 20
    gamma: float = 0.5
    isolated: float = 0.01
    epochs: int = 60
    learning_rate: float = 0.01
    unlearning_epochs: int = 20
    unlearning_rate: float = 1e-4
    batch_size: int = 128
    weight_decay: float = 1e-4
    augmentation: str = "crop-flip"

    # Since losses are in float32.
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 < self.isolated < 1:
            raise InputError(f"ABL: the share of isolated data lies above 0 and below 1, found {self.isolated}")
        # What these refuse, they refuse before the first stage is over.
        Bounded(self.gamma)
        self._recipes()

    def _recipes(self) -> tuple[Recipe, Recipe, Recipe]:
        """Return the recipes of the three stages."""
        isolating = Recipe(
            epochs=self.isolation_epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation=self.augmentation,
            low_resolution=0.0,
        )
        unlearning = replace(isolating, epochs=self.unlearning_epochs, learning_rate=self.unlearning_rate)
        return isolating, replace(isolating, epochs=self.epochs), unlearning

    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        """Isolate, train and unlearn (see `SecureTrainer.learn`)."""
        untrusted, model = data.need_untrusted("ABL"), build_model()
        if len(untrusted) < 2:
            raise InputError("ABL needs two images or more, one of which it isolates")
        isolating, training, unlearning = self._recipes()
        total = self.isolation_epochs + self.epochs
        # The last stage sees a hundredth of the data, so that it takes next to nothing.
        part, bounded = runtime.part(self.isolation_epochs / total), Bounded(self.gamma)
        fit(model, untrusted, isolating, part, hook=bounded, resume=stage(resume, "isolation"), description="isolation")
        rows, others = lowest(losses_of(model, untrusted, runtime), self.isolated)
        part, kept = runtime.part(self.epochs / total), untrusted.subset(others)
        trained = fit(model, kept, training, part, hook=_Falling(), resume=stage(resume, "training"), description="ABL")
        # Unlearning is short, and a budget is not for it.
        free = replace(runtime, budget=None, threads=torch.get_num_threads())
        history = fit(
            model, untrusted.subset(rows), unlearning, free, hook=_Ascent(), resume=resume, description="unlearning"
        )
        note = (
            f"ABL isolated {len(rows)} of {len(untrusted)} images, trained on the others for {trained.epochs} epochs,"
            f" and unlearned the isolated ones for {history.epochs}."
        )
        return Trained(network=model, history=replace(history, notes=(note,)))


class _Falling(Hook):
    """The plain loss at a rate that falls to a tenth towards the end."""

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step and return the loss before it."""
        if batch.progress >= LATE:
            # Set anew for each step.
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        return super().update(model, batch, optimizer)


class _Ascent(Hook):
    """The plain loss, climbed."""

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the negative cross-entropy."""
        return -super().loss(model, batch)
