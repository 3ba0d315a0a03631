"""FT-SAM: fine-tuning with adaptive sharpness-aware minimisation.

Zhu, Wei, Shen, Fan, Wu, "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization" (ICCV 2023).
Neurons that carry a backdoor have large weights, and a perturbation in proportion to the weights moves them most. Each
step climbs to w + e with e = rho T^2 g / ||T g||, T = diag(|w|), g = grad L(w), the norm over all parameters
jointly, and descends from w by the gradient found there. Batch normalisation counts its running statistics in the
first pass only.

As in the published code the cosine of the learning rate advances once a batch with a half-period of 100 steps, so it
swings instead of falling once; a schedule by epochs is a different method. Where a budget shortens it, the half-period
is changed so that it ends after whole swings and a fall, as where the minutes run out is by chance: our rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.statistics import statistics_kept
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit


@dataclass(frozen=True, kw_only=True)
class FTSAM(Purifier):
    """Fine-tune on clean samples towards flat minima.

    Attributes:
        epochs: passes over the clean samples; the paper uses 100 (50 on GTSRB).
        batch_size: images a step.
        learning_rate: peak of SGD.
        rho: radius of the climb, above 0; the paper uses 2 (8 on GTSRB and Tiny-ImageNet).
        label_smoothing: 0 to 1; the paper uses 0.1 (0 on GTSRB and Tiny-ImageNet).
        augmentation: of the clean samples; see `Recipe`.
    """

    revision: ClassVar[int] = 1

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    rho: float = 2.0
    label_smoothing: float = 0.1
    augmentation: str = "crop-flip"

    def __post_init__(self) -> None:
        if not 0 < self.rho < math.inf:
            raise InputError(f"FTSAM: rho must be a positive number, found {self.rho}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Fine-tune `model` in place (see `Purifier.repair`)."""
        recipe = Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            nesterov=False,
            schedule="cosine:100",
            label_smoothing=self.label_smoothing,
            ema=0.0,
            augmentation=self.augmentation,
            low_resolution=0.0,
        )
        clean = data.need_clean("FT-SAM")
        hook = _SharpnessAware(self.rho)
        return fit(model, clean, recipe, runtime, hook=hook, resume=resume, description="FT-SAM")


class _SharpnessAware(Hook):
    """Two passes a step: climb, then descend from where the climb began."""

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def identity(self) -> object:
        """Return the radius."""
        return ("FTSAM", self.rho)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one sharpness-aware step and return the loss at its start."""
        loss = self.backward(model, batch, optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            climb = adaptive_climb(before, [p.grad for p in parameters if p.grad is not None], self.rho)
            torch._foreach_add_(parameters, climb)
        with statistics_kept(model):
            self.backward(model, batch, optimizer)
        with torch.no_grad():
            for parameter, value in zip(parameters, before):
                parameter.copy_(value)
        optimizer.step()
        return loss


def adaptive_climb(weights: list[Tensor], gradients: list[Tensor], rho: float) -> list[Tensor]:
    """Return rho T^2 g / (||T g|| + 1e-12) for each weight tensor, T = |w|, the norm over all of them jointly.

    Args:
        weights: any shapes.
        gradients: of the same shapes.
        rho: radius.

    Source: equation 5 of the FT-SAM paper; Kwon et al., "ASAM" (ICML 2021).
    """
    scaled = [weight.abs() * gradient for weight, gradient in zip(weights, gradients)]
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(part) for part in scaled]))
    return [rho / (norm + 1e-12) * weight.abs() * part for weight, part in zip(weights, scaled)]
