"""What inspections compare: models, images without and with the trigger, and what the ones make of the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect.base import KnownAttack, Material
from unbackdoor.models import Network, last_linear
from unbackdoor.sift.observed import run_over
from unbackdoor.training import Runtime
from unbackdoor.training.fits import check_takes

SUSPECT, REFERENCE = "suspect", "reference"
CLEAN, TRIGGERED = "clean", "triggered"

AT_ONCE = 200 * 3 * 32 * 32
"""Values of the images that are looked at together: gradients and maps of large images would fill the memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Images that the attack is about, without and with the trigger, row by row.

    Attributes:
        originals: clean images with their labels.
        triggered: the same with the trigger, and with their true labels.
        wanted: the attacker's labels.
    """

    originals: ImageSet
    triggered: ImageSet
    wanted: Int[Tensor, "n"]


def models_of(model: Network, material: Material, runtime: Runtime) -> dict[str, Network]:
    """Return the suspect and, if there is one, the reference, on the device.

    Raises:
        InputError: one of them cannot take the clean images.
    """
    models = {SUSPECT: model}
    if material.reference is not None:
        models[REFERENCE] = material.reference
    for one in models.values():
        check_takes(runtime.settle(one), material.clean, runtime)
    return models


def pairs_of(clean: ImageSet, attack: KnownAttack) -> Pairs:
    """Return the clean samples that the attack is about, without and with its trigger.

    Raises:
        InputError: it is about none of them, or the trigger changes no pixel.
    """
    counted = attack.criterion.counted(clean.labels).nonzero().squeeze(1)
    if not len(counted):
        raise InputError(
            f"{clean.name}: all clean samples have the attacker's class, so no trigger can be seen at work"
        )
    originals = clean.subset(counted)
    images = attack.trigger.to(clean.device).stamp(originals.images)
    if torch.equal(images, originals.images):
        raise InputError(f"the trigger changes no pixel of {clean.name}; name the attack that the model was made with")
    wanted = attack.criterion.wanted(originals.labels)
    return Pairs(originals=originals, triggered=replace(originals, images=images), wanted=wanted)


def triggered(clean: ImageSet, attack: KnownAttack) -> ImageSet:
    """Return the clean samples that the attack is about, with its trigger and with the attacker's labels.

    Raises:
        InputError: as for `pairs_of`.
    """
    pairs = pairs_of(clean, attack)
    return replace(pairs.triggered, labels=pairs.wanted)


def samples_of(material: Material) -> dict[str, ImageSet]:
    """Return the clean images and, if the attack is known, the triggered ones with the attacker's labels.

    Raises:
        InputError: as for `pairs_of`.
    """
    samples = {CLEAN: material.clean}
    if material.attack is not None:
        samples[TRIGGERED] = triggered(material.clean, material.attack)
    return samples


def drawn(samples: int, count: int, runtime: Runtime, *purpose: object) -> Int[Tensor, "m"]:
    """Return at most `count` of the rows of so many samples, in their order, drawn by the seed and the purpose."""
    return torch.randperm(samples, generator=runtime.generator("inspect", *purpose))[:count].sort().values


def batches(images: UInt8[Tensor, "n c h w"]) -> tuple[UInt8[Tensor, "b c h w"], ...]:
    """Return the images in parts that are looked at together."""
    parts: tuple[Tensor, ...] = torch.split(images, max(1, AT_ONCE // images[0].numel()))
    return parts


def features_of(
    model: Network, images: ImageSet, runtime: Runtime
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n k"]]:
    """Return what the last linear layer reads of each image, and the logits; on the CPU.

    Args:
        model: in evaluation mode, on the device.
        images: that it takes.
        runtime: device and precision.

    Raises:
        UnsuitedError: the network has no linear layer.
    """
    head = last_linear(model, runtime.layout(images.images[:1]).float() / 255)
    if head is None:
        raise UnsuitedError("features are what the last linear layer reads, and this network has none")
    return run_over(model, head, images.images, runtime)


def side_by_side(models: Mapping[str, Any], told: Callable[[Any], str]) -> str:
    """Return one figure of each model, as people read it; with the models' names if there are several.

    Args:
        models: what was measured of each.
        told: takes that, and returns the figure.
    """
    if len(models) == 1:
        return told(*models.values())
    return " · ".join(f"{name} {told(one)}" for name, one in models.items())
