"""TSBD: reset the neurons that clean unlearning changes most, and fine-tune against active ones.

Lin, Liu, Wei, Li, Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes
and Backdoor Activeness" (NeurIPS 2024).

1. Unlearn the clean samples with a copy of the suspect, and sum each neuron's weight changes (see `weight_change`).
2. In the suspect, set to 0 the share m of the weights that changed most, in the share n of the neurons that did.
3. Fine-tune so that gradients stay small, since those of a backdoored model are larger: L(w) + lambda ||grad L(w)||, by
   finite differences. With g1 = grad L(w) and g2 = grad L(w + r g1 / ||g1||), each step descends along
   (1 - alpha) g1 + alpha g2; lambda = alpha r.

Published code runs all values of n and tests each on test data and the attack; nothing chooses one. Ours is chosen by
clean samples alone: after each reset the running statistics of batch normalisation are counted anew on some, without
gradients, and the largest n is taken before the accuracy on held-out clean samples falls below a floor, the share
`keeps` of what it was. As in the published code the step to w' is divided by the norm of each tensor by itself, not of
all; the paper writes one norm. A tensor without gradient stays where it is (published: NaN), each step runs two passes
(three), and changes are compared in full precision (four decimals), for which unlearning is in float32 throughout.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on, furthest, least_accuracy
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.statistics import for_trials, renew_statistics, statistics_kept
from unbackdoor.training import Batch, History, Hook, Runtime, Sweep, fit, stage
from unbackdoor.training.fits import check_takes
from unbackdoor.training.recipe import refuse_mixing
from unbackdoor.training.unlearning import unlearned
from unbackdoor.training.weight_change import neuron_layers, reset, reset_masks, weight_changes

CHANCE = 0.1
"""Accuracy at which a model has unlearned, unless chance is higher; the authors'."""
UNLEARNING = 0.35
"""Share of a budget that unlearning may take."""
STEPS = 10
"""Of an epoch of the authors' 2,500 images. Of fewer images there are more epochs of fine-tuning, so that the steps are
as many: 21 steps do not heal the reset. Ours."""
CHOICE = 0.1
"""Share of a budget that is left for choosing n, which has no schedule to shorten."""


@dataclass(frozen=True, kw_only=True)
class TSBD(Purifier):
    """Reset neurons by their weight change in clean unlearning, and fine-tune against active ones.

    Attributes:
        unlearning_epochs: passes over the clean samples at most, until accuracy is down to chance.
        unlearning_rate: of SGD, constant.
        neurons: shares n of the neurons that are tried, ascending, above 0 and at most 1; a single one is taken.
        weights: share m of their weights that is reset, above 0 and at most 1.
        keeps: share of the accuracy on held-out clean samples that must be left after the reset, and twice the share
            of what of it is above chance; 0 to 1.
        epochs: passes over the clean samples in fine-tuning; more if they are few, see `STEPS`.
        batch_size: images a step.
        learning_rate: of SGD, constant.
        radius: r of the step to where the second gradient is taken, for each tensor, above 0.
        alpha: weight of the second gradient, 0 to 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    unlearning_epochs: int = 1000
    unlearning_rate: float = 1e-4
    neurons: tuple[float, ...] = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9)
    weights: float = 0.7
    keeps: float = 0.5
    epochs: int = 21
    batch_size: int = 256
    learning_rate: float = 0.01
    radius: float = 0.05
    alpha: float = 0.7
    augmentation: str = "crop-flip"

    # Since unlearning and statistics are in float32, and WRN16x1's shortcuts have no neurons.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.unlearning_epochs < 1:
            raise InputError(f"TSBD: unlearning takes 1 epoch or more, found {self.unlearning_epochs}")
        if not self.neurons or not all(0 < share <= 1 for share in self.neurons):
            raise InputError(f"TSBD: shares of neurons lie above 0 and at most at 1, found {self.neurons}")
        if list(self.neurons) != sorted(set(self.neurons)):
            raise InputError(f"TSBD: shares of neurons are in ascending order, found {self.neurons}")
        if not 0 < self.weights <= 1:
            raise InputError(f"TSBD: the share of weights must be above 0 and at most 1, found {self.weights}")
        for name, share in (("the share of accuracy that is kept", self.keeps), ("alpha", self.alpha)):
            if not 0 <= share <= 1:
                raise InputError(f"TSBD: {name} must lie between 0 and 1, found {share}")
        if not 0 < self.radius < math.inf:
            raise InputError(f"TSBD: the radius must be a positive number, found {self.radius}")
        # Accuracy decides when unlearning ends, which mixed labels do not have.
        refuse_mixing("TSBD", self.augmentation)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn, reset and fine-tune `model` in place (see `Purifier.repair`)."""
        clean = data.need_clean("TSBD")
        check_takes(runtime.settle(model), clean, runtime)
        names = list(neuron_layers(model, runtime.layout(clean.images[:1]).float() / 255))
        # The least that a reset is judged by is what it was not found with.
        kept, held = hold_out(clean, runtime.seed)
        recipe = fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation, "constant", 0.0)
        healing = replace(recipe, epochs=math.ceil(self.epochs * healing_factor(len(clean), self.batch_size)))
        slow = replace(recipe, epochs=self.unlearning_epochs, learning_rate=self.unlearning_rate)
        forgetful, unlearning = unlearned(
            model,
            kept,
            slow,
            runtime.part(UNLEARNING),
            enough=max(CHANCE, 1 / clean.classes),
            resume=stage(resume, "unlearning"),
            description="TSBD's unlearning",
        )
        changes = weight_changes(model, forgetful, names)
        sweep = self._choose(model, names, changes, kept, held, runtime)
        reset(model, names, reset_masks(changes, sweep.chosen, self.weights))
        part = runtime.part(1 - UNLEARNING - CHOICE)
        hook = _AgainstActiveNeurons(self.radius, self.alpha)
        history = fit(model, clean, healing, part, hook=hook, resume=resume, description="TSBD")
        note = (
            f"TSBD unlearned the clean samples in {unlearning.epochs} epochs, and reset {100 * self.weights:g} % of the"
            f" weights of {100 * sweep.chosen:g} % of the neurons."
        )
        return replace(history, sweeps=(sweep,), notes=(*unlearning.notes, note))

    def _choose(
        self,
        model: Network,
        names: Sequence[str],
        changes: Sequence[Float[Tensor, "neurons weights"]],
        kept: ImageSet,
        held: ImageSet,
        runtime: Runtime,
    ) -> Sweep:
        """Return the sweep over n, the share of the neurons that are reset; the model is left as it is."""
        trial = copy.deepcopy(model)
        images = for_trials(kept.to(runtime.place).images)
        accuracy = [accuracy_on(model, held, runtime)]
        for share in self.neurons:
            trial.load_state_dict(model.state_dict())
            reset(trial, names, reset_masks(changes, share, self.weights))
            renew_statistics(trial, images, runtime)
            accuracy.append(accuracy_on(trial, held, runtime))
        floor = least_accuracy(self.keeps, accuracy[0], held.classes)
        sweep = furthest("share of neurons reset (n)", (0.0, *self.neurons), accuracy, floor)
        rule = f"{sweep.rule} It is measured after the reset, with batch normalization's statistics counted anew."
        # Doing nothing is no repair: the least share is tried, whatever it costs.
        return replace(sweep, chosen=max(sweep.chosen, self.neurons[0]), rule=rule)


def healing_factor(rows: int, batch_size: int) -> float:
    """Return how many times as many epochs of fine-tuning there are, of so few images, 1 or more."""
    return max(1.0, STEPS / math.ceil(rows / batch_size))


class _AgainstActiveNeurons(Hook):
    """Two passes a step: at the weights, and a step further up the loss."""

    def __init__(self, radius: float, alpha: float) -> None:
        self.radius, self.alpha = radius, alpha

    def identity(self) -> object:
        """Return radius and weight."""
        return ("TSBD", self.radius, self.alpha)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step and return the loss at its start."""
        loss = self.backward(model, batch, optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        first = [p.grad.clone() for p in parameters if p.grad is not None]
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, ascent(first, self.radius))
        with statistics_kept(model):
            self.backward(model, batch, optimizer)
        with torch.no_grad():
            for parameter, value, gradient in zip(parameters, before, first):
                parameter.copy_(value)
                if parameter.grad is not None:
                    parameter.grad.mul_(self.alpha).add_(gradient, alpha=1 - self.alpha)
        optimizer.step()
        return loss


def ascent(gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
    """Return r g / ||g|| for each tensor by itself; 0 for one without gradient."""
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return [
        torch.where(norm > 0, radius / norm.clamp_min(torch.finfo(norm.dtype).tiny), 0.0) * gradient
        for gradient, norm in zip(gradients, norms)
    ]
