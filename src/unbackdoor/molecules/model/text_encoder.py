"""The text encoder: a small Transformer, trained from scratch by the alignment with graphs.

Published: SciBERT, whose first token's last vector is projected. Its weights are no part of this package.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """Texts to vectors: the first token's last vector, projected.

    Args:
        pieces: of the tokenizer's vocabulary.
        layers: of the Transformer.
        width: of its vectors; there is a head for every 32 of it.
        most: pieces of the longest text.
        projection: of the texts' vectors.
    """

    def __init__(self, pieces: int, layers: int, width: int, most: int, projection: int) -> None:
        super().__init__()
        self.piece = nn.Embedding(pieces, width, padding_idx=0)
        self.place = nn.Parameter(0.02 * torch.randn(most, width))
        layer = nn.TransformerEncoderLayer(
            width,
            max(1, width // 32),
            4 * width,
            dropout=0.1,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.project = nn.Linear(width, projection)

    def forward(self, pieces: Int[Tensor, "b l"]) -> Float[Tensor, "b p"]:
        """Return a vector a text, not normalised."""
        words = self.piece(pieces) + self.place[: pieces.shape[1]]
        hidden = self.transformer(words, src_key_padding_mask=pieces == 0)
        vectors: Tensor = self.project(hidden[:, 0]).float()
        return vectors
