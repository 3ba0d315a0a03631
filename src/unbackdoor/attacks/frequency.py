"""Signals with a place in the frequency domain, as additive patterns in the pixel domain.

Adding a constant to a coefficient of a (linear) cosine transform of a (linear) chroma channel adds a fixed pattern to
the image. So attacks "in the frequency domain" need no transform at poisoning time.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.errors import InputError

WINDOW = 32
"""Side of the windows that FTrojan and CTRL transform."""
POSITIONS = ((15, 15), (31, 31))
"""Coefficients that both raise."""
HIGHEST_FREQUENCY = 2
"""Periods along each side, up to which LF and Smooth go."""


def cosine_wave(row: int, column: int) -> Float[Tensor, "32 32"]:
    """Return what one unit of a coefficient of the orthonormal two-dimensional DCT-II is in pixels.

    Args:
        row: frequency from top to bottom, 1 to 31.
        column: frequency from left to right, 1 to 31.
    """
    places = (2 * torch.arange(WINDOW) + 1) * math.pi / (2 * WINDOW)
    return 2 / WINDOW * torch.outer(torch.cos(row * places), torch.cos(column * places))


def chroma_signal(
    shape: tuple[int, int, int], magnitude: float, colors: tuple[float, float, float]
) -> Float[Tensor, "c h w"]:
    """Return the pattern of a magnitude at `POSITIONS` of each window of each chroma channel.

    Args:
        shape: of the images. Windows that do not fit are cut off. One channel has no chroma: it gets the wave itself.
        magnitude: of the coefficients, for pixels from 0 to 255.
        colors: what a unit in every chroma channel adds to red, green and blue.

    Returns:
        Pixel units [0, 1].
    """
    channels, height, width = shape
    wave = magnitude / 255 * sum((cosine_wave(*place) for place in POSITIONS), torch.zeros(WINDOW, WINDOW))
    tiles = wave.repeat(-(-height // WINDOW), -(-width // WINDOW))[:height, :width]
    if channels != len(colors):
        return tiles.expand(shape).clone()
    return torch.tensor(colors)[:, None, None] * tiles


def low_frequency_waves(height: int, width: int, highest: int) -> Float[Tensor, "k h w"]:
    """Return sines and cosines of all two-dimensional frequencies up to `highest` periods along each side."""
    rows = 2 * math.pi * torch.arange(height)[:, None] / height
    columns = 2 * math.pi * torch.arange(width)[None, :] / width
    waves = []
    for down in range(highest + 1):
        for right in range(-highest if down else 1, highest + 1):
            phase = down * rows + right * columns
            waves += [torch.sin(phase), torch.cos(phase)]
    return torch.stack(waves)


def low_frequency_pattern(
    weights: Float[Tensor, "c k"], waves: Float[Tensor, "k h w"], amplitude: float
) -> Float[Tensor, "c h w"]:
    """Return the weighted sum of the waves, rescaled so that its values run from 0 to `amplitude`."""
    pattern = torch.einsum("ck,khw->chw", weights, waves)
    low, high = pattern.min(), pattern.max()
    return amplitude * (pattern - low) / (high - low).clamp_min(1e-12)


def check_magnitude(magnitude: float) -> None:
    """Raise InputError unless the magnitude of a coefficient is a positive number."""
    if not 0 < magnitude < math.inf:
        raise InputError(f"the magnitude must be a positive number, found {magnitude}")
