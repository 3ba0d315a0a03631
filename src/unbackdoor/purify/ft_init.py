"""FT-init: draw the last linear layer anew, then fine-tune everything.

A baseline of Min, Qin, Shen, Cheng, "Towards Stable Backdoor Purification through Feature Shift Tuning" (NeurIPS 2023).
A classifier that has to be learned again from clean samples moves the features below it as well, more than plain
fine-tuning does. The loss is the cross-entropy.

Epochs, rate and batch size are those of the command in the authors' repository, which also has no weight decay. Their
program scales the last layer's weights back to their old norm after every step, whichever method is asked for; that
belongs to feature shift tuning, and is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network, last_linear
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.training import History, Runtime, fit
from unbackdoor.training.fits import check_takes


@dataclass(frozen=True, kw_only=True)
class FTInit(Purifier):
    """Fine-tune on clean samples with a new last layer.

    Attributes:
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, at the start of the cosine.
        augmentation: of the clean samples; see `Recipe`.
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.01
    augmentation: str = "crop-flip"

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Draw the last layer anew and fine-tune `model` in place (see `Purifier.repair`)."""
        clean = data.need_clean("FT-init")
        check_takes(runtime.settle(model), clean, runtime)
        head = last_linear(model, runtime.layout(clean.images[:1]).float() / 255)
        if head is None or head.out_features != model.classes:
            raise InputError(
                "FT-init draws the linear layer that tells the classes apart anew, and this network does not end in"
                " one; choose another method"
            )
        draw_anew(head, runtime.generator("new last layer"))
        recipe = fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation, weight_decay=0.0)
        return fit(model, clean, recipe, runtime, resume=resume, description="FT-init")


@torch.no_grad()
def draw_anew(layer: nn.Linear, generator: torch.Generator) -> None:
    """Draw weights and biases uniformly from +-1 / sqrt(inputs), as a new layer of PyTorch has them."""
    bound = layer.in_features**-0.5
    for parameter in layer.parameters():
        parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
