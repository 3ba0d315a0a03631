"""Small images and networks on which conformance is checked."""

from __future__ import annotations

import torch
from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Description, Network
from unbackdoor.training import Runtime

SHAPES = ((3, 16, 16), (1, 20, 20), (3, 12, 18))
"""Colour, grey, and not square: every method handles them or says what it supports."""

CLASSES = 4


def sample_images(shape: tuple[int, int, int], count: int = 48) -> ImageSet:
    """Return random images with a faint pattern that tells the classes apart."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 156, (count, *shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % CLASSES
    band = shape[1] // CLASSES
    for row, label in enumerate(labels.tolist()):
        images[row, :, label * band : (label + 1) * band] += 90
    names = tuple(f"class {number}" for number in range(CLASSES))
    return ImageSet(images=images, labels=labels, class_names=names, name="conformance")


def sample_network(shape: tuple[int, int, int]) -> Network:
    """Return a small convolutional network, its weights always the same."""
    # What is drawn without a seed elsewhere has to stay another each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        body = nn.Sequential(
            nn.Conv2d(shape[0], 8, 3, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 1, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, CLASSES),
        )
    description = Description(
        architecture="conformance",
        arguments={},
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        image_shape=shape,
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
    )
    return Network(body, description).eval()


def sample_runtime(seed: int = 0) -> Runtime:
    """Return a runtime on which results repeat exactly."""
    return Runtime(device="cpu", precision="fp32", threads=1, seed=seed)


def hooks_on(module: nn.Module) -> int:
    """Return how many hooks are registered anywhere in a module, those on its parameters included."""
    kinds = (
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_post_accumulate_grad_hooks",
    )
    # A parameter has None where it has no hooks.
    hooked = [*module.modules(), *module.parameters()]
    return sum(len(getattr(one, kind, None) or ()) for one in hooked for kind in kinds)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of a module's parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same_state(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are equal, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
