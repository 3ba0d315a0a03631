"""`Transform` and `Augmentation`: random changes of a batch whose draw is apart from their application.

The idea is kornia's: the parameters of a random transform are drawn first, as plain tensors, and applied
afterwards, so that a draw can be kept, inspected and replayed exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unbackdoor.errors import InputError

Draw = dict[str, Tensor]
"""The drawn parameters of one transform: name to a tensor whose first dimension is the batch."""


@dataclass(frozen=True, kw_only=True)
class Transform(ABC):
    """A random change of each image of a batch.

    A subclass writes `draw` and `_apply`; one that combines images of a batch also writes `mix`. Unless it
    does, the images are changed independently: the rows of a draw belong to the rows of the batch and may be
    taken apart.

    Attributes:
        moves_pixels: pixels are only moved or set to zero, never computed, so that uint8 images are accepted.
        mixes: images of a batch are combined, so that the targets must be mixed as well.
    """

    moves_pixels: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    @abstractmethod
    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw the parameters for a batch.

        Args:
            shape: images, channels, height and width of the batch.
            generator: the only source of chance; the parameters live on its device. How many numbers are
                taken from it depends on the shape alone.

        Returns:
            Tensors whose first dimension is the batch.
        """

    def apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        """Return the images changed as drawn; the given images stay as they are.

        Args:
            images: floating point in [0, 1], or uint8 if the transform only moves pixels; on any device.
            draw: from `draw`, for as many images; moved to the images' device.

        Returns:
            Images of the same shape, type and range.

        Raises:
            InputError: the type does not fit, or the draw is for another number of images.
        """
        name = type(self).__name__
        if not (images.is_floating_point() or (self.moves_pixels and images.dtype == torch.uint8)):
            kinds = "uint8 or floating point" if self.moves_pixels else "floating point in [0, 1]"
            raise InputError(f"{name} needs images that are {kinds}, found {images.dtype}; convert them first")
        if any(len(values) != len(images) for values in draw.values()):
            found = sorted({len(values) for values in draw.values()})
            raise InputError(f"{name}: the draw is for {found} images, the batch has {len(images)}; draw for its shape")
        return self._apply(images, {key: values.to(images.device) for key, values in draw.items()})

    @abstractmethod
    def _apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        """Change the images; type, length and device of images and draw have been checked."""

    def mix(self, targets: Shaped[Tensor, "b ..."], draw: Draw) -> Shaped[Tensor, "b ..."]:
        """Return the targets that fit the changed images: here, the targets as they are."""
        return targets


@dataclass(frozen=True)
class Augmentation:
    """Transforms applied one after the other.

    Attributes:
        transforms: in order; none at all is the identity. Those that only move pixels should come first,
            since they are cheapest on uint8; one that mixes should come last, since a later change of the
            geometry would no longer fit the mixed targets.
    """

    transforms: tuple[Transform, ...] = ()

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are combined, so that `mix` must be applied to their targets."""
        return any(transform.mixes for transform in self.transforms)

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> tuple[Draw, ...]:
        """Draw the parameters of all transforms.

        Args:
            shape: images, channels, height and width of the batch.
            generator: the only source of chance.

        Returns:
            One draw for each transform, in order.
        """
        return tuple(transform.draw(shape, generator) for transform in self.transforms)

    def apply(self, images: Shaped[Tensor, "b c h w"], draws: tuple[Draw, ...]) -> Float[Tensor, "b c h w"]:
        """Return the images changed as drawn.

        The leading transforms that only move pixels run on the images as they are (fast for uint8); the rest
        on floating point numbers. Gradients flow through if the images are floating point.

        Args:
            images: uint8 in 0 to 255 or floating point in [0, 1], on any device.
            draws: from `draw`, for a batch of the same shape.

        Returns:
            float32 in [0, 1], in channels_last memory format; without transforms, the same tensor if it is
            that already.

        Raises:
            InputError: the images are of another type, or the draws are not for these transforms and images.
        """
        if len(draws) != len(self.transforms):
            raise InputError(
                f"{len(self.transforms)} transforms need as many draws, found {len(draws)};"
                " use what this augmentation drew"
            )
        for transform, draw in zip(self.transforms, draws):
            if not transform.moves_pixels:
                images = to_float(images)
            images = transform.apply(images, draw)
        return to_float(images).contiguous(memory_format=torch.channels_last)

    def mix(self, targets: Shaped[Tensor, "b ..."], draws: tuple[Draw, ...]) -> Shaped[Tensor, "b ..."]:
        """Return the targets that fit the changed images.

        Args:
            targets: class probabilities (B, K); anything with the batch first if nothing mixes.
            draws: those given to `apply`.

        Returns:
            Targets of the same shape; the same tensor if nothing mixes.
        """
        for transform, draw in zip(self.transforms, draws, strict=True):
            targets = transform.mix(targets, draw)
        return targets

    def __call__(self, images: Shaped[Tensor, "b c h w"], generator: torch.Generator) -> Float[Tensor, "b c h w"]:
        """Draw and apply at once, see `apply`.

        Raises:
            InputError: a transform mixes images, so that their targets would silently be wrong.
        """
        if self.mixes:
            raise InputError(
                "this augmentation mixes images: use draw, apply and mix, so that the targets are mixed too"
            )
        batch, channels, height, width = images.shape
        return self.apply(images, self.draw((batch, channels, height, width), generator))


def to_float(images: Shaped[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Return float32 images in [0, 1] of uint8 ones in 0 to 255; of floating point ones, the same values.

    Raises:
        InputError: the images are of another type.
    """
    if images.is_floating_point():
        return images.to(torch.float32)
    if images.dtype != torch.uint8:
        raise InputError(f"images must be uint8 or floating point in [0, 1], found {images.dtype}; convert them first")
    # Twice as fast as one division with type promotion, and the same numbers.
    return images.to(torch.float32).div_(255)


def uniform(batch: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Draw `batch` numbers evenly from `low` to `high`."""
    return low + (high - low) * torch.rand(batch, generator=generator, device=generator.device)


def happens(batch: int, probability: float, generator: torch.Generator) -> Shaped[Tensor, " b"]:
    """Draw `batch` truth values, each true with the given probability."""
    return torch.rand(batch, generator=generator, device=generator.device) < probability


def require_probability(transform: Transform, probability: float) -> None:
    """Raise InputError unless the number lies in [0, 1]."""
    if not 0 <= probability <= 1:
        raise InputError(f"{type(transform).__name__}: probability must lie in [0, 1], found {probability}")
