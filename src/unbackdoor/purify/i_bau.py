"""I-BAU: adversarial unlearning of backdoors via the implicit hypergradient.

Zeng, Chen, Park, Mao, Jin, Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient" (ICLR 2022). One
perturbation of all images that makes the model err stands for the unknown trigger, and the model unlearns it:

    min_theta L_out(delta(theta), theta),    delta(theta) = argmin_delta L_in(delta, theta),
    L_in = -CE(f(x + delta), y) + penalty ||delta||^2,    L_out = CE of a batch some of whose images carry delta.

delta answers to theta, and the gradient of theta counts that in. Where delta is a fixed point of the map
Phi(delta, theta) = delta - map_rate grad_delta L_in, delta(theta) has the derivative (I - dPhi/ddelta)^-1 dPhi/dtheta;
the inverse is replaced by the first `steps` terms of its series.

As in the authors' code: delta starts at 0 in each round, takes one step a batch against the model's own answers, lives
in pixel units, and is neither bounded nor kept within valid pixels; Phi is that of one fixed batch with true labels;
one image in a hundred carries delta in L_out (the formula in their README has it on all); the model is in evaluation
mode. Rate, rounds and batches are the authors' too. BackdoorBench has a tenth of the rate, which is weaker, normalised
units, and batches of 256. Here batches come in another order in each round, Adam is the AMSGrad variant as everywhere,
and at least one image of a batch carries delta. All gradients are in float32, on a GPU without TF32: differences
between them are the signal.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.derivatives import twice_differentiable
from unbackdoor.purify.base import Purifier
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, logits_of


@dataclass(frozen=True, kw_only=True)
class IBAU(Purifier):
    """Unlearn one perturbation of all images by the implicit hypergradient.

    Attributes:
        rounds: a perturbation is made and one pass over the clean samples unlearns it.
        batch_size: images a step.
        learning_rate: of Adam, constant.
        steps: terms of the series that stands for the inverse (K of the paper), 1 or more.
        perturbation_rate: of the perturbation's gradient steps, above 0.
        map_rate: of the map whose fixed point the perturbation is, above 0.
        penalty: weight of the perturbation's squared norm, pixel units, 0 or more.
        perturbed: share of each batch that carries the perturbation when it is unlearned, above 0 and at most 1.
    """

    rounds: int = 5
    batch_size: int = 100
    learning_rate: float = 1e-3
    steps: int = 5
    perturbation_rate: float = 10.0
    map_rate: float = 0.1
    penalty: float = 1e-3
    perturbed: float = 0.01

    # Since only the second derivatives that are asked for are computed, with other rounding, and a budget counts the
    # perturbations.
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"IBAU: steps must be 1 or more, found {self.steps}")
        rates = (self.perturbation_rate, self.map_rate)
        if not all(0 < rate < math.inf for rate in rates) or not 0 <= self.penalty < math.inf:
            raise InputError(
                "IBAU: the perturbation's and the map's rate must be positive numbers and the penalty 0 or more, found"
                f" {self.perturbation_rate}, {self.map_rate} and {self.penalty}"
            )
        if not 0 < self.perturbed <= 1:
            raise InputError(f"IBAU: the perturbed share must be above 0 and at most 1, found {self.perturbed}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Unlearn in place (see `Purifier.repair`)."""
        recipe = Recipe(
            epochs=self.rounds,
            batch_size=self.batch_size,
            optimizer="Adam",
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="none",
            low_resolution=0.0,
            train_mode=False,
        )
        clean = data.need_clean("I-BAU")
        return fit(model, clean, recipe, runtime, hook=_Unlearning(self, clean), resume=resume, description="I-BAU")


class _Unlearning(Hook):
    """A perturbation at the first batch of each round, and a step by the hypergradient at every batch."""

    def __init__(self, options: IBAU, clean: ImageSet) -> None:
        self.options = options
        self.clean = clean
        self.evenly = False

    def for_timing(self) -> _Unlearning:
        """Return a copy that makes a part of the perturbation in each step, not all of it in the first of a round."""
        copied = copy.deepcopy(self)
        copied.evenly = True
        return copied

    def identity(self) -> object:
        """Return the options."""
        return self.options

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Divide the clean samples into batches that stay the same for the perturbation."""
        super().begin(model, recipe, runtime)
        # Compiled, a model has no second derivatives.
        self.model = model
        self.clean = self.clean.to(runtime.place)
        order = torch.randperm(len(self.clean), generator=runtime.generator("batches of the perturbation"))
        count = math.ceil(len(order) / recipe.batch_size)
        self.parts = order.to(runtime.place).tensor_split(count)
        # An interrupted run goes on at the beginning of a round, so nothing has to be kept for it.
        self.step = 0

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step by the hypergradient and return the outer loss before it."""
        if self.evenly or self.step % len(self.parts) == 0:
            self.perturbation = self.perturb()
        self.step += 1
        delta = self.perturbation.clone().requires_grad_(True)
        weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        # The faster kernels of attention have no second derivatives.
        with sdpa_kernel(SDPBackend.MATH), twice_differentiable(self.model):
            outer = self.outer_loss(batch, delta)
            inner = self.inner_loss(self.parts[0], self.clean.labels[self.parts[0]], delta)
            mapped = gradient_step(inner, delta, self.options.map_rate)
            gradients = hypergradient(outer, mapped, delta, weights, self.options.steps)
        optimizer.zero_grad(set_to_none=True)
        for parameter, gradient in zip(weights, gradients):
            parameter.grad = gradient
        optimizer.step()
        return outer.detach()

    def perturb(self) -> Float[Tensor, "1 c h w"]:
        """Return the perturbation that one pass over the clean samples finds, one gradient step a batch."""
        delta = torch.zeros(1, *self.clean.shape, device=self.clean.device)
        for rows in self.parts[:1] if self.evenly else self.parts:
            answers = logits_of(self.model, self.clean.images[rows], self.runtime).argmax(1)
            delta = delta.requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.inner_loss(rows, answers, delta), delta)
            delta = delta.detach() - self.options.perturbation_rate * gradient
        return delta

    def inner_loss(
        self, rows: Int[Tensor, "b"], labels: Int[Tensor, "b"], delta: Float[Tensor, "1 c h w"]
    ) -> Float[Tensor, ""]:
        """Return what the perturbation minimises on the clean samples at `rows`."""
        images = self.clean.images[rows].float() / 255
        entropy = F.cross_entropy(self.model(self.runtime.layout(images + delta)), labels)
        return self.options.penalty * delta.square().sum() - entropy

    def outer_loss(self, batch: Batch, delta: Float[Tensor, "1 c h w"]) -> Float[Tensor, ""]:
        """Return the cross-entropy of a batch whose first images, which are random ones, carry the perturbation."""
        count = max(1, int(self.options.perturbed * len(batch.images)))
        images = torch.cat([batch.images[:count] + delta, batch.images[count:]])
        return F.cross_entropy(self.model(self.runtime.layout(images)), batch.targets)


def gradient_step(loss: Float[Tensor, ""], variable: Tensor, rate: float) -> Tensor:
    """Return variable - rate grad loss, with its own dependence on everything that the loss depends on."""
    (gradient,) = torch.autograd.grad(loss, variable, create_graph=True)
    return variable - rate * gradient


def hypergradient(
    outer: Float[Tensor, ""], mapped: Tensor, variable: Tensor, weights: Sequence[Tensor], terms: int
) -> list[Tensor | None]:
    """Return the gradient of the outer loss with respect to the weights, the variable answering to them.

    With g = d outer / d variable and Phi the map, v = sum over k < terms of (dPhi / d variable)^T^k g approximates
    (I - dPhi / d variable)^-T g; the result is d outer / d weights + (dPhi / d weights)^T v.

    Args:
        outer: loss at the variable and the weights.
        mapped: Phi(variable, weights), of the variable's shape.
        variable: where outer and mapped were computed; close to a fixed point of Phi.
        weights: any shapes; of one that neither depends on, the result is None.
        terms: of the series, 1 or more.

    Source: Grazzi et al., "On the Iteration Complexity of Hypergradient Computation" (ICML 2020), which I-BAU uses.
    """
    first, *direct = torch.autograd.grad(outer, [variable, *weights], allow_unused=True)
    if first is None:
        return list(direct)
    total = first
    for _ in range(terms - 1):
        (back,) = torch.autograd.grad(mapped, variable, total, retain_graph=True)
        total = first + back
    indirect = torch.autograd.grad(mapped, list(weights), total, allow_unused=True)
    return [b if a is None else a if b is None else a + b for a, b in zip(direct, indirect)]
