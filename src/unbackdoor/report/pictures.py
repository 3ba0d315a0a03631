"""Tensors as pictures inside a page."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.report.content import Picture

SMALLEST_SIDE = 96
"""Pixels that the shorter side of a picture has at least, after enlarging it by a whole factor."""

_ROUNDING = 1e-3  # half precision may leave [0, 1] by this much; more is a mistake of the caller


class EncodedPicture(NamedTuple):
    """A picture as a page holds it: a `data:` address of a PNG, and its size in pixels."""

    source: str
    width: int
    height: int


def encode(picture: Picture) -> EncodedPicture:
    """Return the picture as PNG, each of its pixels enlarged to a square of whole pixels, without smoothing.

    Raises:
        InputError: not one or three channels, no pixels, or values that are not in [0, 1].
    """
    pixels = _pixels(picture)
    factor = max(1, -(-SMALLEST_SIDE // min(pixels.shape[1:])))
    enlarged = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    array = enlarged.permute(1, 2, 0).numpy()
    stream = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(stream, format="PNG", optimize=True)
    address = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
    return EncodedPicture(address, enlarged.shape[2], enlarged.shape[1])


def amplified_difference(
    clean: Float[Tensor, "c h w"], triggered: Float[Tensor, "c h w"], factor: float = 10
) -> Float[Tensor, "c h w"]:
    """Return how far each pixel was moved, times `factor`, cut off at 1: black is unchanged."""
    return ((triggered.float() - clean.float()).abs() * factor).clamp(0, 1)


def _pixels(picture: Picture) -> UInt8[Tensor, "c h w"]:
    image = picture.image.detach().cpu().float()
    if image.ndim != 3 or image.shape[0] not in {1, 3} or image.numel() == 0:
        found = tuple(image.shape)
        raise InputError(f"picture {picture.caption!r}: needs shape (1 or 3, height, width), found {found}")
    low, high = image.aminmax()
    # Written so that NaN, which compares false, is refused too.
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):
        raise InputError(
            f"picture {picture.caption!r}: pixels must be in [0, 1], found {low:.3g} to {high:.3g}; scale them first"
        )
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)
