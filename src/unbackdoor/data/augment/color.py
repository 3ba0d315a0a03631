"""Transforms of colours: brightness, contrast, saturation, hue, and no colour at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.data.augment.transform import Draw, Transform, happens, require_probability, uniform
from unbackdoor.errors import InputError

# How bright the primaries look (ITU-R BT.601), as in torchvision and Pillow.
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class ColorJitter(Transform):
    """Change brightness, contrast, saturation and hue, in this order, each by its own random amount.

    Saturation and hue are left as they are unless there are three channels, taken for red, green and blue.
    Contrast is about the mean luma of an image, or the mean of all its values if it is not RGB. Values are
    cut off at 0 and 1 after each step. Zero switches a step off.

    Attributes:
        brightness: b >= 0; the values are multiplied by a factor drawn evenly from max(0, 1 - b) to 1 + b.
        contrast: distances from the mean are multiplied by such a factor.
        saturation: distances from the grey image are multiplied by such a factor.
        hue: h in [0, 0.5]; the hue is turned by an angle drawn evenly from -h to h, in full turns.
        probability: that an image is changed at all, in [0, 1].
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    probability: float = 1.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"ColorJitter: {name} must not be negative, found {getattr(self, name)}")
        if not 0 <= self.hue <= 0.5:
            raise InputError(f"ColorJitter: hue must lie in [0, 0.5], found {self.hue}")
        require_probability(self, self.probability)

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `brightness`, `contrast`, `saturation` (factors), `hue` (turns) and `changed`: whether any counts."""
        batch = shape[0]
        factors = {
            name: uniform(batch, max(0.0, 1 - extent), 1 + extent, generator)
            for name, extent in (
                ("brightness", self.brightness),
                ("contrast", self.contrast),
                ("saturation", self.saturation),
            )
        }
        hue = uniform(batch, -self.hue, self.hue, generator)
        return {**factors, "hue": hue, "changed": happens(batch, self.probability, generator)}

    def _apply(self, images: Float[Tensor, "b c h w"], draw: Draw) -> Float[Tensor, "b c h w"]:
        factor = {name: values.to(images.dtype).view(-1, 1, 1, 1) for name, values in draw.items()}
        before = images
        colored = images.shape[1] == 3
        if self.brightness:
            images = (images * factor["brightness"]).clamp(0, 1)
        if self.contrast:
            light = _luma(images) if colored else images
            images = _blend(images, light.mean(dim=(1, 2, 3), keepdim=True), factor["contrast"])
        if self.saturation and colored:
            images = _blend(images, _luma(images), factor["saturation"])
        if self.hue and colored:
            images = _turn_hue(images, factor["hue"].squeeze(1))
        return torch.where(draw["changed"].view(-1, 1, 1, 1), images, before)


@dataclass(frozen=True, kw_only=True)
class Grey(Transform):
    """Replace all three channels by the luma; an image that is not RGB stays as it is.

    Attributes:
        probability: that an image turns grey, in [0, 1].
    """

    probability: float = 0.2

    def __post_init__(self) -> None:
        require_probability(self, self.probability)

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `grey`: whether each image turns grey."""
        return {"grey": happens(shape[0], self.probability, generator)}

    def _apply(self, images: Float[Tensor, "b c h w"], draw: Draw) -> Float[Tensor, "b c h w"]:
        if images.shape[1] != 3:
            return images
        return torch.where(draw["grey"].view(-1, 1, 1, 1), _luma(images), images)


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)


def _blend(
    images: Float[Tensor, "b c h w"], middle: Float[Tensor, "b 1 #h #w"], factor: Float[Tensor, "b 1 1 1"]
) -> Float[Tensor, "b c h w"]:
    """Multiply the distances from `middle`; in this form, a factor of 1 changes nothing at all."""
    return (factor * images + (1 - factor) * middle).clamp(0, 1)


def _turn_hue(images: Float[Tensor, "b 3 h w"], turns: Float[Tensor, "b 1 1"]) -> Float[Tensor, "b 3 h w"]:
    """Turn the hue, with value and saturation (in the sense of HSV) as they were."""
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    # Grey has no hue: any number will do, as it is multiplied by no chroma below.
    divisor = torch.where(chroma > 0, chroma, 1)
    from_green, from_blue = 2 + (blue - red) / divisor, 4 + (red - green) / divisor
    sextant = torch.where(value == green, from_green, from_blue)
    sextant = torch.where(value == red, (green - blue) / divisor, sextant) + 6 * turns
    # Each channel is at the top for two sextants, at the bottom for two, and on its way in between.
    phase = (sextant.unsqueeze(1) + sextant.new_tensor((5, 3, 1)).view(1, 3, 1, 1)) % 6
    depth = torch.minimum(phase, 4 - phase).clamp(0, 1)
    return (value.unsqueeze(1) - chroma.unsqueeze(1) * depth).clamp(0, 1)
