"""What the plain purifiers share: samples one at a time, the usual epoch, and accuracy."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.purify.statistics import RENEWAL

PADDING = 4

Batches = list[tuple[Tensor, Tensor]]

Epochs = Callable[[int, nn.Module, torch.optim.Optimizer, "Samples"], Iterable[int]]
"""Gives the numbers of the epochs of a stage, and may look at its model, optimiser and samples between them."""


class Samples:
    """Images as PIL pictures, given out in batches of float tensors in [0, 1], NCHW.

    Args:
        images: what is given out.
        augmentation: "none", "crop" or "crop-flip".
        device: that batches are moved to.
        seed: of crops, flips and order.
    """

    def __init__(self, images: ImageSet, augmentation: str, device: torch.device, seed: int) -> None:
        self.pictures = [Image.fromarray(one.permute(1, 2, 0).contiguous().numpy()) for one in images.images]
        self.labels = images.labels.tolist()
        self.augmentation, self.device = augmentation, device
        self.draws = random.Random(seed)

    def __len__(self) -> int:
        return len(self.pictures)

    def one(self, row: int) -> Tensor:
        """Return one picture after crop and flip, as a tensor."""
        picture = self.pictures[row]
        if self.augmentation != "none":
            width, height = picture.size
            left, top = self.draws.randint(0, 2 * PADDING), self.draws.randint(0, 2 * PADDING)
            picture = ImageOps.expand(picture, PADDING).crop((left, top, left + width, top + height))
        if self.augmentation == "crop-flip" and self.draws.random() < 0.5:
            picture = ImageOps.mirror(picture)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the images and labels at these rows."""
        images = torch.stack([self.one(row) for row in rows])
        return images.to(self.device), torch.tensor([self.labels[row] for row in rows]).to(self.device)

    def batches(self, size: int, shuffle: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of one epoch."""
        rows = list(range(len(self)))
        if shuffle:
            self.draws.shuffle(rows)
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])


def plainly(count: int, *_: object) -> Iterable[int]:
    """Return the numbers of the epochs, and look at nothing."""
    return range(count)


def train(
    model: nn.Module,
    samples: Samples,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 5e-4,
    cosine: bool = True,
) -> None:
    """Fine-tune all parameters by cross-entropy: SGD with momentum, a cosine by epochs or a constant rate."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, epochs)) if cosine else None
    for _ in range(epochs):
        for images, labels in samples.batches(batch_size):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        if schedule:
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the share of samples that the model, in evaluation mode, gets right."""
    model.eval()
    right = total = 0
    for images, labels in batches:
        right += (model(images).argmax(1) == labels).sum().item()
        total += len(labels)
    return right / total


def furthest(accuracies: Sequence[float], floor: float) -> int:
    """Return the last position before an accuracy falls below the floor, the first one at least."""
    reached = 0
    for position in range(1, len(accuracies)):
        if accuracies[position] < floor:
            break
        reached = position
    return reached


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the batch normalisations, in the order of the modules."""
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def for_trials(images: ImageSet) -> ImageSet:
    """Return the images by which running statistics are counted for models that are only tried, as ours does."""
    return images.subset(torch.arange(0, len(images), math.ceil(len(images) / RENEWAL)))


@torch.no_grad()
def renew_statistics(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Count the running statistics of batch normalisation anew, as the plain average over batches."""
    for layer in norms(model):
        layer.reset_running_stats()
        layer.momentum = None
    model.train()
    for images, _ in batches:
        model(images)
    for layer in norms(model):
        layer.momentum = 0.1
    model.eval()
