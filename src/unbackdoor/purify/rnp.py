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
held-out clean samples falls by more than `allowance`. Unlearning and masks are in float32: small differences between
masks, and between the weights from which they recover, are what counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.masked import By, MaskedNetwork, MaskHook, check_values, mask_recipe, prune_by_mask
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.training import History, Recipe, Runtime, fit, stage
from unbackdoor.training.recipe import refuse_mixing
from unbackdoor.training.unlearning import unlearned

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

    # Since unlearning and masks are in float32, and recovery has draws of its own.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.unlearning_epochs < 1:
            raise InputError(f"RNP: the epochs of unlearning must be 1 or more, found {self.unlearning_epochs}")
        if not (0 <= self.unlearned <= 1 and 0 < self.alpha < math.inf):
            raise InputError(
                "RNP: the accuracy when unlearned must lie between 0 and 1 and alpha be above 0,"
                f" found {self.unlearned} and {self.alpha}"
            )
        # Accuracy decides when unlearning ends, which mixed labels do not have.
        refuse_mixing("RNP", self.augmentation)
        self._recipe()
        check_values("RNP", self.by, self.values)
        check_allowance("RNP", self.allowance)

    def _recipe(self) -> Recipe:
        return mask_recipe(self.epochs, self.batch_size, self.learning_rate, self.augmentation)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn and recover in a copy, and prune `model` in place (see `Purifier.repair`)."""
        kept, held = hold_out(data.need_clean("RNP"), runtime.seed)
        layers = list(norm_layers(runtime.settle(model), "RNP").values())
        # The masks' epochs need no gradients of weights.
        share = 3 * self.unlearning_epochs / (3 * self.unlearning_epochs + 2 * self.epochs)
        first = fine_tuning(
            self.unlearning_epochs, self.batch_size, self.unlearning_rate, self.augmentation, "constant"
        )
        forgetful, unlearning = unlearned(
            model,
            kept,
            first,
            runtime.part(share),
            enough=self.unlearned,
            longest=LONGEST,
            late=LATE,
            resume=stage(resume, "unlearning"),
            description="RNP's unlearning",
        )
        masked = MaskedNetwork(forgetful, norm_layers(forgetful, "RNP"))
        hook = MaskHook(self, masked, weight=self.alpha)
        part = runtime.part(1 - share).in_float32()
        history = fit(
            masked, kept, self._recipe(), part, hook=hook, resume=resume, description="RNP", names=("recovery",)
        )
        sweep, note = prune_by_mask(
            "RNP", model, layers, masked.mask, self.by, self.values, held, self.allowance, runtime
        )
        return replace(history, sweeps=(sweep,), notes=(*unlearning.notes, note))
