"""`Staged`: a network that is the composition of named stages, so that it can be cut between any two."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class Staged(nn.Module):
    """Base of the networks shipped here; a network only says what its stages are."""

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose composition is the network, with their names, in order."""
        raise NotImplementedError

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits of normalised images."""
        features = images
        for _, module in self.stages():
            features = module(features)
        return features
