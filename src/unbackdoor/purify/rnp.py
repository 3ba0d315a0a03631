"""RNP: reconstructive neuron pruning.

Li, Lyu, Ma, Koren, Lyu, Li, Jiang, "Reconstructive Neuron Pruning for Backdoor Defense" (ICML 2023). A network that has
unlearned the clean samples still knows its trigger, so what helps it to learn them again has no part in the backdoor.

1. Unlearn: all weights of a copy climb the cross-entropy of clean samples, max CE( f(x), y ), until its accuracy on
   them is `unlearned`.
2. Recover: the copy's weights stay, and a mask m in [0, 1] on each weight of batch normalisation learns the clean
   samples, min alpha CE( f_m(x), y ).
3. Prune: in the suspect, the weights of the channels with the smallest masks are set to 0.

Rates, epochs, batches and alpha are those of the authors' program, in which the rate of unlearning falls to a tenth
after half of the epochs. Their program cuts gradients to a norm of 20 before they are computed, which cuts nothing;
ours cuts them before the step, since the loss that is climbed has no bound. Where accuracy is never low enough it has
no model to go on with; ours goes on with the last epoch's, and says so.

The authors' program prints a table of test accuracy and attack success by threshold, and BackdoorBench takes the one
with the lowest success on test data. Here it is the largest threshold, or number of channels, before accuracy on
held-out clean samples falls by more than `allowance`.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.masked import By, MaskedNetwork, MaskHook, check_values, mask_recipe, prune_by_mask
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, stage

LONGEST = 20.0
"""Norm of all gradients together to which those of unlearning are cut; the authors'."""

LATE = 0.1
"""By which the rate of unlearning is multiplied in the second half of its epochs; the authors'."""


@dataclass(frozen=True, kw_only=True)
class RNP(Purifier):
    """Prune the channels that do not help a copy, which unlearned the clean samples, to recover them.

    Attributes:
        unlearning_epochs: passes over the clean samples in which the copy unlearns them, at most; 1 or more.
        unlearned: accuracy on the clean samples at which unlearning ends, 0 to 1.
        unlearning_rate: of SGD on all weights; a tenth of it in the second half.
        epochs: passes over the clean samples in which the masks recover them.
        learning_rate: of SGD on the masks, constant.
        batch_size: images a step.
        alpha: weight of the loss of the masks, above 0.
        by: whether "threshold" on the mask or "number" of channels is chosen.
        values: of the threshold or number that are tried, ascending; if empty, 0 to 0.9 by 0.05 or 0 to 1000 by 20
            (by less in a network with fewer channels).
        allowance: accuracy on held-out clean samples that may be lost, 0 to 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    unlearning_epochs: int = 20
    unlearned: float = 0.2
    unlearning_rate: float = 0.01
    epochs: int = 20
    learning_rate: float = 0.2
    batch_size: int = 128
    alpha: float = 0.2
    by: By = "threshold"
    values: tuple[float, ...] = ()
    allowance: float = 0.03
    augmentation: str = "crop-flip"

    def __post_init__(self) -> None:
        if self.unlearning_epochs < 1:
            raise InputError(f"RNP: the epochs of unlearning must be 1 or more, found {self.unlearning_epochs}")
        if not (0 <= self.unlearned <= 1 and 0 < self.alpha < math.inf):
            raise InputError(
                "RNP: the accuracy when unlearned must lie between 0 and 1 and alpha be above 0,"
                f" found {self.unlearned} and {self.alpha}"
            )
        check_values("RNP", self.by, self.values)
        check_allowance("RNP", self.allowance)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn and recover in a copy, and prune `model` in place (see `Purifier.repair`)."""
        kept, held = hold_out(data.need_clean("RNP"), runtime.seed)
        layers = list(norm_layers(runtime.settle(model), "RNP").values())
        # The masks' epochs need no gradients of weights.
        share = 3 * self.unlearning_epochs / (3 * self.unlearning_epochs + 2 * self.epochs)
        unlearned = copy.deepcopy(model)
        accuracy = self._unlearn(unlearned, kept, runtime.part(share), stage(resume, "unlearned"))
        masked = MaskedNetwork(unlearned, norm_layers(unlearned, "RNP"))
        recipe = mask_recipe(self.epochs, self.batch_size, self.learning_rate, self.augmentation)
        hook = MaskHook(self, masked, weight=self.alpha)
        history = fit(masked, kept, recipe, runtime.part(1 - share), hook=hook, resume=resume, description="RNP")
        sweep, note = prune_by_mask(
            "RNP", model, layers, masked.mask, self.by, self.values, held, self.allowance, runtime
        )
        notes = (*_warning(accuracy, self.unlearned), note)
        return replace(history, sweeps=(sweep,), notes=notes)

    def _unlearn(self, model: Network, kept: ImageSet, runtime: Runtime, resume: Path | None) -> float:
        """Let a model unlearn the clean samples; return its accuracy in the last epoch."""
        recipe = fine_tuning(
            self.unlearning_epochs, self.batch_size, self.unlearning_rate, self.augmentation, "constant"
        )
        hook = _Unlearning(self, runtime)
        fit(model, kept, recipe, runtime, hook=hook, resume=resume, description="RNP's unlearning")
        return hook.accuracy


def _warning(accuracy: float, wanted: float) -> tuple[str, ...]:
    """Return what a report says of an unlearning that ended too early, if it did."""
    if accuracy <= wanted:
        return ()
    return (
        f"RNP's unlearning ended at an accuracy of {100 * accuracy:.1f} % on clean samples, above the"
        f" {100 * wanted:.1f} % wanted; its masks tell less.",
    )


class _Unlearning(Hook):
    """Climbs the cross-entropy, and ends with the epoch in which accuracy is low enough.

    Attributes:
        accuracy: over the last epoch, counted while it went on.
    """

    def __init__(self, options: RNP, runtime: Runtime) -> None:
        self.options = options
        self.accuracy = 1.0
        self.right = torch.zeros((), device=runtime.place)
        self.seen = 0

    def identity(self) -> object:
        """Return the options."""
        return "unlearning", self.options

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the model, whose gradients are cut."""
        super().begin(model, recipe, runtime)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step uphill and return the loss before it."""
        with self.runtime.autocast():
            logits = model(batch.images)
            loss = F.cross_entropy(logits, batch.targets)
        self.right += (logits.detach().argmax(1) == batch.targets).sum()
        self.seen += len(batch.images)
        optimizer.zero_grad(set_to_none=True)
        (-loss).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, LONGEST)
        if batch.progress >= 0.5:
            # Set anew for each step.
            for group in optimizer.param_groups:
                group["lr"] *= LATE
        optimizer.step()
        return loss.detach()

    def finished(self, model: nn.Module) -> bool:
        """Return whether accuracy in the epoch that was just done is low enough."""
        self.accuracy = float(self.right) / self.seen
        self.right.zero_()
        self.seen = 0
        return self.accuracy <= self.options.unlearned

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracy of the last epoch."""
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the accuracy."""
        self.accuracy = state["accuracy"]
