"""Whether images and a network belong together: asked before any work on both."""

from __future__ import annotations

import torch
from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training.inference import logits_of
from unbackdoor.training.runtime import Runtime


def check_fits(model: Network, *sets: ImageSet | None) -> None:
    """Raise InputError unless images and classes of every set fit the model.

    Args:
        model: what the images are for.
        *sets: None is skipped: data that are not there cannot be wrong.
    """
    for data in sets:
        if data is None:
            continue
        check_shape(model, data.shape, data.name)
        if data.classes != model.classes:
            raise InputError(
                f"{data.name} has {data.classes} classes, but the model tells {model.classes} apart;"
                " use data of the same classes"
            )


def check_shape(model: Network, shape: tuple[int, int, int], name: str) -> None:
    """Raise InputError unless images of that shape (channels, height, width) fit the model; `name` is what they are."""
    if shape != model.description.image_shape:
        raise InputError(
            f"{name} has images of {_shape(shape)}, but the model was made for {_shape(model.description.image_shape)};"
            " convert the images first"
        )


def refusal(model: nn.Module, shape: tuple[int, int, int], runtime: Runtime) -> str | None:
    """Return why a network cannot take images of that shape (channels, height, width), or None if it can.

    One image is tried: what a network needs is nowhere declared (poolings that need a side, positions that fix it).
    """
    try:
        logits_of(model, torch.zeros((1, *shape), dtype=torch.uint8), runtime)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return None


def check_takes(model: nn.Module, data: ImageSet, runtime: Runtime) -> None:
    """Raise InputError unless the network takes images of the data's shape (see `refusal`)."""
    why = refusal(model, data.shape, runtime)
    if why is not None:
        raise InputError(
            f"{data.name} has images of {_shape(data.shape)}, which the network cannot take ({why}); choose another"
            " network or convert the images"
        )


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{channels} x {height} x {width}"
