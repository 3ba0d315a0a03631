"""Networks of a user's own, and files for them, for the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from unbackdoor.data import read_images
from unbackdoor.models import Description, Network, build_network

TINY = "tests.commands.networks:tiny"


def tiny(channels: int, classes: int, hidden: int = 8) -> nn.Module:
    """Return a network that takes images of any size."""
    features = [nn.Conv2d(channels, hidden, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(4)]
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(16 * hidden, classes))


PIXELS = "tests.commands.networks:pixels"


def pixels(channels: int, classes: int) -> nn.Module:
    """Return a network whose features are the pixels of images of 4 x 4."""
    return nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(16 * channels, classes, bias=False))


def tiny_network(classes: int = 10, seed: int = 0) -> Network:
    """Return an untrained registered network for the digits."""
    description = Description(
        architecture="WRN16x1",
        arguments={"width": 2},
        class_names=tuple(str(c) for c in range(classes)),
        image_shape=read_images("digits", "test").shape,
        mean=(0.5,),
        std=(0.25,),
    )
    return build_network(description, seed=seed)


def write_plain_state(path: Path) -> Path:
    """Write the bare weights of `tiny` for the digits."""
    torch.manual_seed(0)
    torch.save(tiny(1, 10).state_dict(), path)
    return path
