"""FT: fine-tuning of all parameters."""

from __future__ import annotations

import torch

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import FT

from .common import Samples, train


def repair(method: FT, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Fine-tune in place."""
    samples = Samples(clean, method.augmentation, device, seed)
    train(model, samples, method.epochs, method.batch_size, method.learning_rate)
