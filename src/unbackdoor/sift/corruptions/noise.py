"""Noise: of the sensor, of the light, and of single pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.sift.corruptions.draws import Draws

DEVIATIONS = (0.08, 0.12, 0.18, 0.26, 0.38)
QUANTA = (60.0, 25.0, 12.0, 5.0, 3.0)
"""Of light in a white pixel."""
SHARES = (0.03, 0.06, 0.09, 0.17, 0.27)


def gaussian_noise(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Add noise."""
    noise = draws.normal("noise", *images.shape[1:]).to(images)
    return images + DEVIATIONS[severity - 1] * noise


def shot_noise(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Count few quanta of light: Poisson's distribution, drawn as quantiles of uniform numbers."""
    quanta, wanted = QUANTA[severity - 1], draws.uniform("quantiles", *images.shape[1:]).to(images)
    mean = images * quanta
    chance = torch.exp(-mean)
    reached, counts = chance.clone(), torch.zeros_like(images)
    # Twelve deviations above the mean nothing is left.
    for count in range(1, int(quanta + 12 * quanta**0.5) + 1):
        counts += reached < wanted
        chance *= mean / count
        reached += chance
    return counts / quanta


def impulse_noise(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Make a share of the values black or white."""
    share, drawn = SHARES[severity - 1], draws.uniform("impulses", *images.shape[1:]).to(images)
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, images))
