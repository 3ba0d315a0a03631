"""Triggers: what an attacker does to an image to wake the backdoor."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor, nn

from unbackdoor.errors import InputError

STAMPED_AT_ONCE = 500 * 3 * 32 * 32
"""Values of the images that are stamped together: as floats they are to fit the processor's cache."""

CHANGES_NOTHING = "the trigger changes no pixel of the images to be poisoned, so it can teach nothing"

TRIAL_SIDE = 64
"""Side of the images, at most, on which a trigger that takes any size is tried."""


class Trigger(nn.Module):
    """From images in [0, 1] to triggered images in [0, 1]; deterministic for a given image.

    Everything that a trigger needs are its buffers, so that a safetensors file holds it whole: a trigger is built
    from its state dict alone (`from_state`).

    Attributes:
        survives_rounding: whether rounding to 8 bits leaves it intact; if not, its success is measured both ways.
    """

    survives_rounding: ClassVar[bool] = True

    @torch.no_grad()
    def stamp(self, images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
        """Return triggered 8-bit images: what a file holds, rounded to the nearest value."""
        return torch.cat([to_bytes(self(part.float() / 255)) for part in in_parts(images)])

    def trial_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return the shape of the images on which a trigger for images of `shape` is tried when it is read."""
        return shape

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Trigger:
        """Return the trigger with these buffers.

        Raises:
            KeyError: a buffer is missing.
        """
        return cls(**{name: state[name] for name in cls.buffer_names()})

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return the names of the buffers, which are the constructor's arguments too."""
        raise NotImplementedError


def to_bytes(images: Float[Tensor, "n c h w"]) -> UInt8[Tensor, "n c h w"]:
    """Return images in [0, 1] as 8-bit images, rounded to the nearest value."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def in_parts(images: Shaped[Tensor, "n c h w"]) -> tuple[Shaped[Tensor, "m c h w"], ...]:
    """Return the images in parts that are worked on together; an empty set is one part."""
    parts: tuple[Tensor, ...] = torch.split(images, max(1, STAMPED_AT_ONCE // max(1, images[:1].numel())))
    return parts


def check_changes(trigger: Trigger, images: UInt8[Tensor, "n c h w"]) -> None:
    """Refuse a trigger that changes no pixel of any of these images once they are 8-bit again.

    Args:
        trigger: on the images' device.
        images: of which as few are triggered as it takes to see a change.

    Raises:
        InputError: nothing changes.
    """
    if all(torch.equal(trigger.stamp(part), part) for part in in_parts(images)):
        raise InputError(CHANGES_NOTHING)


def one_number(value: Tensor, name: str, lowest: float, highest: float) -> Float[Tensor, ""]:
    """Return the value if it is a single float32 number within these bounds.

    Raises:
        InputError: it is not; triggers come from files too.
    """
    if value.shape != () or value.dtype != torch.float32 or not lowest <= float(value) <= highest:
        raise InputError(f"{name} of a trigger is one number from {lowest:g} to {highest:g}")
    return value


def number_of(images: Float[Tensor, "b c h w"]) -> Int[Tensor, "b"]:
    """Return a number for each image that depends on its 8-bit pixels alone, and looks random.

    A trigger that differs from image to image chooses by it, so that it does the same to the same image every time.
    """
    total = (images.detach() * 255).round().long().flatten(1).sum(1)
    # Knuth's multiplicative hash; the low bits of a product are no better than those of the sum.
    return (total * 2654435761 % 2**32) >> 8


def small_trial(shape: tuple[int, int, int], least: int = 1) -> tuple[int, int, int]:
    """Return the shape with its sides cut to a size that is quickly worked on, but not below `least`."""
    channels, *sides = shape
    height, width = (min(side, max(TRIAL_SIDE, least)) for side in sides)
    return channels, height, width


class Stamp(Trigger):
    """Mix a fixed pattern into every image: x' = (1 - mask) x + mask pattern.

    Args:
        mask: opacity of each pixel, 0 to 1; shape (1 or C, H, W).
        pattern: shape (C, H, W), 0 to 1.
    """

    mask: Tensor
    pattern: Tensor

    def __init__(self, mask: Float[Tensor, "m h w"], pattern: Float[Tensor, "c h w"]) -> None:
        if mask.shape not in (pattern.shape, (1, *pattern.shape[1:])):
            raise InputError(
                f"a mask of shape {tuple(mask.shape)} does not fit a pattern of {tuple(pattern.shape)};"
                " give it the same height and width, and one channel or as many"
            )
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("pattern", pattern)

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return mask and pattern."""
        return ("mask", "pattern")

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with the pattern in them."""
        check_shape(images, self.pattern)
        return torch.lerp(images, self.pattern.to(images), self.mask.to(images))


class Additive(Trigger):
    """Add a fixed signal to every image and clip: x' = clip(x + signal, 0, 1).

    Args:
        signal: shape (C, H, W), -1 to 1.
    """

    signal: Tensor

    def __init__(self, signal: Float[Tensor, "c h w"]) -> None:
        super().__init__()
        self.register_buffer("signal", signal)

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return the signal."""
        return ("signal",)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with the signal in them."""
        check_shape(images, self.signal)
        return (images + self.signal.to(images)).clamp(0, 1)


def check_shape(images: Float[Tensor, "b c h w"], buffer: Float[Tensor, "c h w"]) -> None:
    """Refuse images of another shape: broadcasting would make images of a shape that nobody asked for."""
    if images.shape[1:] != buffer.shape:
        raise InputError(
            f"the trigger was made for images of shape {tuple(buffer.shape)}, found {tuple(images.shape[1:])};"
            " use images of that shape"
        )
