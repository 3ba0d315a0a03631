"""A repair of latent vectors: what one direction says is set to what it usually says, for texts that a gate picks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class LatentRepair(nn.Module):
    """A direction of the latent space and a gate on the vectors of texts, both set by whoever repairs.

    Args:
        latent: size of a latent vector.
        context: size of a text vector.
    """

    read: Tensor
    write: Tensor
    level: Tensor
    gate: Tensor
    threshold: Tensor

    def __init__(self, latent: int, context: int) -> None:
        super().__init__()
        # What a vector says along the direction, what changes it by 1, and what it is set to.
        self.register_buffer("read", torch.zeros(latent))
        self.register_buffer("write", torch.zeros(latent))
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("gate", torch.zeros(context))
        self.register_buffer("threshold", torch.zeros(()))

    def picked(self, contexts: Float[Tensor, "b p"]) -> Bool[Tensor, "b"]:
        """Return for which texts latent vectors are repaired."""
        picked: Tensor = contexts.float() @ self.gate > self.threshold
        return picked

    def forward(self, latent: Float[Tensor, "b z"], contexts: Float[Tensor, "b p"]) -> Float[Tensor, "b z"]:
        """Return the latent vectors, repaired where the gate picks their texts."""
        missing = torch.where(self.picked(contexts), self.level - latent @ self.read, 0)
        return latent + missing[:, None] * self.write
