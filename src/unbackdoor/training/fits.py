"""Whether images and a network belong together: asked before any work on both."""

from __future__ import annotations

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network


def check_fits(model: Network, *sets: ImageSet | None) -> None:
    """Raise InputError unless images and classes of every set fit the model.

    Args:
        model: what the images are for.
        *sets: None is skipped: data that are not there cannot be wrong.
    """
    for data in sets:
        if data is None:
            continue
        if data.shape != model.description.image_shape:
            raise InputError(
                f"{data.name} has images of {_shape(data.shape)}, but the model was made for"
                f" {_shape(model.description.image_shape)}; convert the images first"
            )
        if data.classes != model.classes:
            raise InputError(
                f"{data.name} has {data.classes} classes, but the model tells {model.classes} apart;"
                " use data of the same classes"
            )


def _shape(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{channels} x {height} x {width}"
