"""The denoiser of 3M-Diffusion: a plain perceptron that estimates the clean latent vector."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

FREQUENCIES = 256
"""Size of the sinusoidal code of a time."""


class Denoiser(nn.Module):
    """Noisy latent vector, time and text vector to an estimate of the clean latent vector.

    Args:
        latent: size of a latent vector.
        context: size of a text vector.
        width: of all layers.
        blocks: linear layers with ReLU, without residuals.
    """

    def __init__(self, latent: int, context: int, width: int, blocks: int) -> None:
        super().__init__()
        self.time = nn.Sequential(
            nn.Linear(FREQUENCIES, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )
        self.enter = nn.Linear(latent + context, width)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.leave = nn.Linear(width, latent)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
        self.nothing = nn.Parameter(torch.randn(context))

    def forward(
        self,
        noisy: Float[Tensor, "b z"],
        time: Int[Tensor, "b"],
        context: Float[Tensor, "b c"],
        without: Bool[Tensor, "b"],
    ) -> Float[Tensor, "b z"]:
        """Return the estimate.

        Args:
            noisy: latent vectors.
            time: from 0.
            context: text vectors.
            without: which rows are estimated without their text.
        """
        context = torch.where(without[:, None], self.nothing, context)
        hidden = self.enter(torch.cat((noisy, context), 1)) + self.time(time_code(time))
        estimate: Tensor = self.leave(self.norm(self.blocks(hidden)))
        return estimate


def time_code(time: Int[Tensor, "b"]) -> Float[Tensor, "b f"]:
    """Return sines and cosines of the time at frequencies from 1 down to 1/10,000."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=time.device) / half)
    angles = time[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), 1)
