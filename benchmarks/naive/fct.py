"""FCT: one PIL image at a time through rotation and shift, two passes a step of fine-tuning, scoring image by image.

The steps of the authors' program: two epochs of training, ten of pushing classes apart, none of them left out, and the
movement of the features of each image by itself. Where that program draws one rotation a row, this one draws as many as
ours, whose interpolation it has too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.sift import FCT

from .common import Samples

SHIFT = 0.2
Turn = tuple[float, int, int]
"""Degrees counter-clockwise, and by how many pixels to the left and up."""


@dataclass
class Scored:
    """The movement of each row, and the seconds of each part."""

    scores: Tensor
    seconds: dict[str, float] = field(default_factory=dict)


def sift(
    method: FCT, build: Callable[[], Network], data: ImageSet, epochs: int, seed: int, device: torch.device
) -> Scored:
    """Train, push the classes apart and score.

    Args:
        method: ours, of which only the options are read.
        build: returns an untrained network.
        data: untrusted rows.
        epochs: of training; two, and more where there are few rows.
        seed: of everything that is drawn.
        device: to compute on.
    """
    torch.manual_seed(seed)
    model = build().float().to(device, memory_format=torch.contiguous_format).requires_grad_(True)
    samples = Samples(data, "none", device, seed)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    seconds = {}
    for name, count, loss_of in (("learning", epochs, _entropy), ("pushing apart", method.epochs, _closeness)):
        started = time.perf_counter()
        model.train()
        for _ in range(count):
            for images, labels in samples.batches(128 if name == "learning" else method.batch_size):
                optimizer.zero_grad()
                loss = loss_of(model, images, labels)
                loss.backward()
                optimizer.step()
                loss.item()
            schedule.step()
        seconds[name] = time.perf_counter() - started
    started = time.perf_counter()
    scores = score(method, model, data, turns(data, seed), device)
    seconds["scoring"] = time.perf_counter() - started
    return Scored(scores, seconds)


def _entropy(model: Network, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images), labels)


def _closeness(model: Network, images: Tensor, labels: Tensor) -> Tensor:
    # The logits are computed beside the features, and nothing is done with them.
    model(images)
    return closeness(features(model, images), labels, model.classes)


def features(model: Network, images: Tensor) -> Tensor:
    """Return what the last layer reads."""
    found: Tensor = model.split(model.stages()[-1][0])[0](images)
    return found.flatten(1)


def closeness(found: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mean cosine of the mean features of different classes, those that are absent counting as 0."""
    means = []
    for number in range(classes):
        rows = found[labels == number]
        mean = rows.mean(0) if len(rows) else torch.zeros_like(found[0])
        means.append(mean / mean.norm().clamp_min(1e-12))
    total = sum(means[i] @ means[j] for i in range(classes) for j in range(classes) if i != j)
    assert isinstance(total, Tensor)
    return total / classes**2


def turns(data: ImageSet, seed: int) -> Iterator[Turn]:
    """Yield any angle and a shift by up to a fifth of the sides, again and again."""
    draws = random.Random(seed)
    height, width = (int(SHIFT * side) for side in data.shape[1:])
    while True:
        yield draws.uniform(-180, 180), draws.randint(-width, width), draws.randint(-height, height)


@torch.no_grad()
def score(method: FCT, model: Network, data: ImageSet, drawn: Iterator[Turn], device: torch.device) -> Tensor:
    """Return the movement of each row, draw by draw and image by image.

    Args:
        method: of which the number of draws is read.
        model: on the device.
        data: rows.
        drawn: rotations and shifts, all rows of the first draw before those of the second.
        device: to compute on.
    """
    model.eval()
    samples = Samples(data, "none", device, 0)
    before = [features(model, samples.one(row)[None].to(device)) for row in range(len(samples))]
    total = torch.zeros(len(samples))
    for _ in range(method.draws):
        for row in range(len(samples)):
            after = features(model, tensor(turned(samples.pictures[row], next(drawn)))[None].to(device))
            total[row] += (before[row] - after).square().mean().item()
    return total / method.draws


def turned(picture: Image.Image, turn: Turn) -> Image.Image:
    """Return the picture turned about its centre, and then shifted; what is left bare is black."""
    degrees, left, up = turn
    width, height = picture.size
    # PIL mixes the pixels at the border with nothing; ours mixes them with black.
    rotated = ImageOps.expand(picture, 1).rotate(degrees, Image.Resampling.BILINEAR)
    rotated = rotated.crop((1, 1, width + 1, height + 1))
    return rotated.transform(rotated.size, Image.Transform.AFFINE, (1, 0, left, 0, 1, up), Image.Resampling.NEAREST)


def tensor(picture: Image.Image) -> Tensor:
    """Return a picture as a tensor in [0, 1]."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)
