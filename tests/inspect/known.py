"""The planted models as material of inspections, and networks whose answers can be computed by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests.planted import planted
from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.inspect import Material
from unbackdoor.models import Description, Network


@dataclass(frozen=True)
class Known:
    """An attack that is known."""

    trigger: Trigger
    criterion: Criterion


def material(**changes: Any) -> Material:
    """Return clean images, the attack and the clean twin of the first planted model."""
    models = planted(1)
    assert models.data.clean is not None
    return replace(Material(clean=models.data.clean, attack=models.fitted, reference=models.twin), **changes)


def described(body: nn.Module, shape: tuple[int, int, int], classes: int) -> Network:
    """Return a network that does nothing to pixels before the body."""
    description = Description(
        architecture="by hand",
        arguments={},
        class_names=tuple(f"c{number}" for number in range(classes)),
        image_shape=shape,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
    )
    return Network(body, description).eval()


def linear(weights: torch.Tensor) -> Network:
    """Return the network whose logits are sums of pixels, weighted by (classes, channels, height, width)."""
    head = nn.Linear(weights[0].numel(), len(weights), bias=False)
    with torch.no_grad():
        head.weight.copy_(weights.flatten(1))
    return described(nn.Sequential(nn.Flatten(), head), tuple(weights.shape[1:]), len(weights))


def random_images(shape: tuple[int, int, int], count: int, classes: int, seed: int = 0) -> ImageSet:
    """Return images of noise with labels in turn."""
    images = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    names = tuple(f"c{number}" for number in range(classes))
    return ImageSet(images=images, labels=torch.arange(count) % classes, class_names=names, name="noise")
