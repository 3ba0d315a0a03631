"""Weather: snow, frost, fog, and too much light."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.sift.corruptions.blur import enlarged, smeared
from unbackdoor.sift.corruptions.draws import Draws

SNOW = (
    (0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8),
    (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7),
    (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7),
    (0.55, 0.3, 4.5, 0.85, 12, 8.0, 0.65),
    (0.55, 0.3, 2.5, 0.85, 12, 12.0, 0.55),
)
"""Mean and deviation of the flakes, their size, least height, radius and deviation of their way, share of the image."""
FROST = ((1.0, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75))
"""Shares of the image, and of the ice."""
FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7), (2.5, 1.5), (3.0, 1.4))
"""Strength, and by what finer wisps are fainter."""
LIGHT = (0.1, 0.2, 0.3, 0.4, 0.5)
LUMA = (0.299, 0.587, 0.114)


def snow(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Let flakes fall, and whiten."""
    mean, deviation, size, least, radius, way, share = SNOW[severity - 1]
    flakes = mean + deviation * draws.normal("flakes", 1, *images.shape[2:]).to(images)
    flakes = enlarged(flakes, size)
    flakes = torch.where(flakes < least, 0.0, flakes).clamp(0, 1)
    # Downwards, within 45 degrees of the vertical.
    angle = math.pi * (0.25 + 0.5 * draws.uniform("angle").to(images))
    flakes = smeared(flakes, radius, way, angle)
    whitened = torch.maximum(images, _grey(images) * 1.5 + 0.5)
    return share * images + (1 - share) * whitened + flakes + flakes.flip(2, 3)


def frost(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Cover with ice: ridges of a fractal, where theirs are photographs."""
    image, ice = FROST[severity - 1]
    crystals = 1 - (2 * _clouds(draws, images, 1.7) - 1).abs()
    return image * images + ice * crystals.square()


def fog(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Add clouds, and scale so that the brightest stays as bright."""
    strength, finer = FOG[severity - 1]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + strength * _clouds(draws, images, finer)) * brightest / (brightest + strength)


def brightness(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Raise the value of each colour, its hue and saturation kept."""
    value = images.amax(1, keepdim=True)
    raised = (value + LIGHT[severity - 1]).clamp_max(1)
    # Black has no hue: it becomes grey.
    return torch.where(value > 0, images * raised / value.clamp_min(1e-6), raised)


def _grey(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 h w"]:
    if images.shape[1] != len(LUMA):
        return images.mean(1, keepdim=True)
    weights = torch.tensor(LUMA, device=images.device, dtype=images.dtype)
    return (images * weights[:, None, None]).sum(1, keepdim=True)


def _clouds(draws: Draws, images: Float[Tensor, "b c h w"], finer: float) -> Float[Tensor, "b 1 h w"]:
    """Return a fractal from 0 to 1 for each image, by diamonds and squares on a torus whose side is a power of two.

    Args:
        draws: of these images.
        images: whose size it is to have.
        finer: by what the next finer part is fainter.
    """
    height, width = images.shape[2:]
    side = 2 ** max(1, math.ceil(math.log2(max(height, width))))
    field = torch.zeros(len(images), side, side, device=images.device, dtype=images.dtype)
    rough, step = 1.0, side
    while step > 1:
        half = step // 2
        shift = 2 * draws.uniform(f"clouds {step}", 2, 2, side // step, side // step).to(images) - 1
        corners = field[:, ::step, ::step]
        across = corners + corners.roll(-1, 1)
        middle = (across + across.roll(-1, 2)) / 4 + rough * shift[:, 0, 0]
        field[:, half::step, half::step] = middle
        sides = corners + corners.roll(-1, 2) + middle + middle.roll(1, 1)
        field[:, ::step, half::step] = sides / 4 + rough * shift[:, 0, 1]
        sides = corners + corners.roll(-1, 1) + middle + middle.roll(1, 2)
        field[:, half::step, ::step] = sides / 4 + rough * shift[:, 1, 0]
        rough, step = rough / finer, half
    field -= field.amin((1, 2), keepdim=True)
    field /= field.amax((1, 2), keepdim=True).clamp_min(1e-6)
    return field[:, None, :height, :width]
