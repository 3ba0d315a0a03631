"""NAD: neural attention distillation.

Li, Lyu, Koren, Lyu, Li, Ma, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks" (ICLR
2021). A copy of the suspect, fine-tuned on clean samples, is the teacher. The suspect itself is the student: it learns
the clean samples, and to look where the teacher looks,

    CE(f(x), y) + sum_l beta_l mean (A(F_l) - A(F_l of the teacher))^2,    A(F) = sum_c |F_c|^p / || sum_c |F_c|^p ||,

over the feature maps F_l at the end of the network's last three groups; c runs over channels, the norm over positions.

Rates, epochs, batches and weights are BackdoorBench's. Its third map on PreActResNet18 is the pooled one of 1 x 1,
whose attention is always 1 and whose term is always 0; ours are the last modules at each of the last three spatial
sizes above 1 x 1, found by running one image. It computes the maps in three further passes in training mode, through
which running statistics move four times a step; ours come from the one pass that computes the logits. As in the
authors' code the teacher is in evaluation mode.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network, feature_map_names, tapped
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, stage
from unbackdoor.training.fits import check_takes


@dataclass(frozen=True, kw_only=True)
class NAD(Purifier):
    """Fine-tune on clean samples and towards the attention of a fine-tuned copy.

    Attributes:
        teacher_epochs: passes over the clean samples in which the teacher is fine-tuned, 1 or more.
        epochs: passes over the clean samples in which the student learns from it.
        batch_size: images a step.
        learning_rate: of SGD, constant, for both.
        betas: weights of the last feature maps, the last of the network last, each 0 or more.
        power: p of the attention, 1 or more.
        augmentation: of the clean samples; see `Recipe`.
    """

    teacher_epochs: int = 10
    epochs: int = 10
    batch_size: int = 256
    learning_rate: float = 0.01
    betas: tuple[float, ...] = (500.0, 1000.0, 1000.0)
    power: float = 2.0
    augmentation: str = "crop-flip"

    # Since the teacher has draws of its own.
    revision: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.teacher_epochs < 1:
            raise InputError(f"NAD: the teacher's epochs must be 1 or more, found {self.teacher_epochs}")
        if not self.betas or not all(0 <= beta < math.inf for beta in self.betas):
            raise InputError(f"NAD: betas must be one or more numbers of 0 or more, found {self.betas}")
        if not 1 <= self.power < math.inf:
            raise InputError(f"NAD: the power must be a number of 1 or more, found {self.power}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Fine-tune a teacher, then distil into `model` in place (see `Purifier.repair`)."""
        clean = data.need_clean("NAD")
        check_takes(runtime.settle(model), clean, runtime)
        maps = feature_map_names(model, runtime.layout(clean.images[:1]).float() / 255)
        if not maps:
            raise InputError("NAD compares feature maps, and this network has none; choose another method")
        recipe = fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation, "constant")
        # A pass of the teacher, forwards only, comes to each step of the student.
        share = 3 * self.teacher_epochs / (3 * self.teacher_epochs + 4 * self.epochs)
        teacher = copy.deepcopy(model)
        first = replace(recipe, epochs=self.teacher_epochs)
        part, resumed = runtime.part(share), stage(resume, "teacher")
        fit(teacher, clean, first, part, resume=resumed, description="NAD's teacher", names=("teacher",))
        hook = _Distillation(self, teacher, maps)
        return fit(model, clean, recipe, runtime.part(1 - share), hook=hook, resume=resume, description="NAD")


class _Distillation(Hook):
    """The loss of the student."""

    def __init__(self, options: NAD, teacher: nn.Module, maps: list[str]) -> None:
        self.options = options
        self.teacher = teacher.eval().requires_grad_(False)
        # Where there are fewer sizes than weights, the last ones belong together.
        self.betas = dict(zip(reversed(maps), reversed(options.betas)))

    def identity(self) -> object:
        """Return the options."""
        return self.options

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the model itself: compiled, it would not notice taps that come and go."""
        super().begin(model, recipe, runtime)
        self.student = model
        runtime.settle(self.teacher)

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy plus the weighted differences of attention, from one pass of each network."""
        with tapped(self.student, *self.betas) as ours:
            total = F.cross_entropy(self.student(batch.images), batch.targets)
        with torch.no_grad(), tapped(self.teacher, *self.betas) as theirs:
            self.teacher(batch.images)
        for name, beta in self.betas.items():
            total = total + beta * attention_loss(ours[name], theirs[name], self.options.power)
        return total


def attention(features: Float[Tensor, "b c h w"], power: float) -> Float[Tensor, "b h w"]:
    """Return where a feature map is active: the sum over channels of |F|^power, divided by its norm + 1e-6."""
    total = features.float().abs().pow(power).sum(1)
    normalized: Tensor = total / (torch.linalg.vector_norm(total, dim=(1, 2), keepdim=True) + 1e-6)
    return normalized


def attention_loss(
    features: Float[Tensor, "b c h w"], wanted: Float[Tensor, "b d h w"], power: float
) -> Float[Tensor, ""]:
    """Return the mean squared difference of two attentions, over images and positions."""
    return F.mse_loss(attention(features, power), attention(wanted, power))
