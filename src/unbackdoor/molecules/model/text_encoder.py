"""The text encoder: a small Transformer, trained from scratch by the alignment with graphs.

Published: SciBERT, whose first token's last vector is projected (`huggingface_text` reads it). Only that one vector is
used, so the last layer computes no other; and texts of like length go through together, so that little is padding.

A sum of vectors of the words is added, which a Transformer that begins from nothing on some thousand texts hardly finds
by itself. On it the order of the words has no effect.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

PARTS = 4
"""Into which a batch is divided by length."""

DROPOUT = 0.1
"""Of the words' vectors alone: drawing masks for every layer takes long on a processor."""


class TextEncoder(nn.Module):
    """Texts to vectors: the first token's last vector and the sum of all words' own, both projected.

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
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, projection)
        self.word = nn.Embedding(pieces, width, padding_idx=0)
        self.project_words = nn.Linear(width, projection, bias=False)

    def forward(self, pieces: Int[Tensor, "b l"]) -> Float[Tensor, "b p"]:
        """Return a vector a text, not normalised."""
        length = (pieces != 0).sum(1)
        order = length.argsort(stable=True)
        parts = [
            self._first(pieces[rows, : int(length[rows[-1]])]) for rows in torch.tensor_split(order, PARTS) if len(rows)
        ]
        first = torch.cat(parts)[order.argsort()]
        vectors: Tensor = self.project(self.norm(first)).float() + self._words(pieces, length)
        return vectors

    def _words(self, pieces: Int[Tensor, "b l"], length: Int[Tensor, "b"]) -> Float[Tensor, "b p"]:
        """Return the projected sum of the words' vectors; long texts have longer ones, but not in proportion."""
        words = F.dropout(self.word(pieces), DROPOUT, self.training) * (pieces != 0)[..., None]
        summed: Tensor = self.project_words(words.sum(1) / length.sqrt()[:, None]).float()
        return summed

    def _first(self, pieces: Int[Tensor, "b l"]) -> Float[Tensor, "b w"]:
        """Return the first token's last vector."""
        words = F.dropout(self.piece(pieces) + self.place[: pieces.shape[1]], DROPOUT, self.training)
        seen = (pieces != 0)[:, None, None]
        for layer in self.layers[:-1]:
            words = layer(words, words, seen)
        last: Tensor = self.layers[-1](words[:, :1], words, seen)
        return last[:, 0]


class Layer(nn.Module):
    """Attention and a perceptron, both with a residual and layer normalisation before them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.before = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, asking: Float[Tensor, "b q w"], words: Float[Tensor, "b l w"], seen: Bool[Tensor, "b 1 1 l"]
    ) -> Float[Tensor, "b q w"]:
        """Return new vectors of the words that ask.

        Args:
            asking: the first of the words, or all of them.
            words: that are asked.
            seen: which of these are no padding.
        """
        known = self.before(words)
        query = self.query(known[:, : asking.shape[1]])
        key, value = self.key_value(known).chunk(2, dim=-1)
        query, key, value = (one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (query, key, value))
        found = _attention(query, key, value, seen)
        attended = asking + self.out(found.transpose(1, 2).flatten(2))
        result: Tensor = attended + self.perceptron(attended)
        return result


def _attention(
    query: Float[Tensor, "b h q d"], key: Float[Tensor, "b h l d"], value: Float[Tensor, "b h l d"], seen: Tensor
) -> Float[Tensor, "b h q d"]:
    """Return what each query finds; on a processor in float32, whose gradient takes a third of the time of bf16's."""
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), attn_mask=seen)
