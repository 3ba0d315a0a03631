"""FT-init: a new last layer, then fine-tuning."""

from __future__ import annotations

import torch
from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import FTInit

from .common import Samples, train


def repair(method: FTInit, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Draw the last layer anew and fine-tune in place."""
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    head.reset_parameters()
    samples = Samples(clean, method.augmentation, device, seed)
    train(model, samples, method.epochs, method.batch_size, method.learning_rate, weight_decay=0.0)
