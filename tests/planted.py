"""Small models with and without a backdoor, trained in about a second, for tests that need a known answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from unbackdoor.attacks import BadNets, FittedAttack
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.models import Description, Network
from unbackdoor.training import Recipe, Runtime, fit

CLASSES = 8
SHAPE = (3, 12, 12)
NAMES = tuple("abcdefgh")


def runtime(seed: int = 0) -> Runtime:
    """Return a runtime on which results repeat exactly."""
    return Runtime(device="cpu", precision="fp32", threads=1, seed=seed)


def pictures(count: int, seed: int) -> ImageSet:
    """Return noisy pictures; each class is a smooth pattern of its own, some stronger than others."""
    generator = torch.Generator().manual_seed(1000 + seed)
    coarse = torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7)) - 0.5
    smooth = F.interpolate(coarse, size=SHAPE[1:], mode="bilinear", align_corners=False)
    patterns = smooth * torch.linspace(0.8, 2.0, CLASSES).view(-1, 1, 1, 1)
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, *SHAPE, generator=generator) * 0.12
    contrast = 0.4 + 0.4 * torch.rand(count, 1, 1, 1, generator=generator)
    images = (0.5 + contrast * patterns[labels] + noise).clamp(0, 1)
    return ImageSet(images=(images * 255).round().to(torch.uint8), labels=labels, class_names=NAMES, name="planted")


def network(seed: int, width: int = 12) -> Network:
    """Return an untrained network of three convolutions with batch normalisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Conv2d(3, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, CLASSES),
        )
    description = Description(
        architecture="planted",
        arguments={},
        class_names=NAMES,
        image_shape=SHAPE,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    return Network(body, description)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """A backdoored model, its twin trained on the same images without poison, and what belongs to them.

    Attributes:
        target: the class that the white patch of 2 x 2 pixels leads to.
        suspect: the backdoored model.
        twin: same start, same images, same recipe, no poison.
        fitted: the attack.
        test: images that nobody has seen.
        data: what a defender has: 240 clean images.
    """

    target: int
    suspect: Network
    twin: Network
    fitted: FittedAttack
    test: ImageSet
    data: DefenderData


@lru_cache
def planted(seed: int) -> Planted:
    """Train both models; callers must not change them."""
    train = pictures(800, 10 * seed)
    target = (3 * seed + 1) % CLASSES
    attack = BadNets(target=target, poison_rate=0.1, size=5)
    fitted = attack.prepare(train, lambda: network(seed), runtime(seed))
    recipe = Recipe(
        epochs=6,
        batch_size=64,
        learning_rate=0.1,
        label_smoothing=0.0,
        ema=0.0,
        augmentation="none",
        low_resolution=0.0,
    )
    suspect, twin = network(seed), network(seed)
    fit(suspect, fitted.train, recipe, runtime(seed))
    fit(twin, train, recipe, runtime(seed))
    for model in (suspect, twin):
        model.zero_grad(set_to_none=True)
    return Planted(
        target=target,
        suspect=suspect,
        twin=twin,
        fitted=fitted,
        test=pictures(320, 10 * seed + 1),
        data=DefenderData(clean=pictures(240, 10 * seed + 2)),
    )
