"""A network of which only the head learns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.models import Network


class FrozenStem(nn.Module):
    """A frozen stem, in evaluation mode throughout, and a head that learns, with dropout before its last stage.

    Args:
        network: its weights are shared.
        at: stage at which the head begins.
        dropout: 0 or more and below 1.
    """

    def __init__(self, network: Network, at: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem, head = network.split(at)
        self.stem.requires_grad_(False)
        *layers, last = head.children()
        self.head = nn.Sequential(*layers, nn.Dropout(dropout), last)

    def train(self, mode: bool = True) -> FrozenStem:
        """Set the mode of the head alone."""
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits, through which no gradient flows into the stem."""
        with torch.no_grad():
            features = self.stem(images)
        logits: Tensor = self.head(features)
        return logits
