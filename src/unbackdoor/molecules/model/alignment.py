"""The first stage of 3M-Diffusion: vectors of a text and of its molecule are drawn together, all others apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.molecules.model.graph_encoder import GraphEncoder


class Aligned(nn.Module):
    """Both encoders, as they are trained together."""

    def __init__(self, graph: GraphEncoder, text: nn.Module) -> None:
        super().__init__()
        self.graph = graph
        self.text = text


def contrastive_loss(
    graphs: Float[Tensor, "b p"], texts: Float[Tensor, "b p"], temperature: float
) -> Float[Tensor, ""]:
    """Return the symmetric InfoNCE of pairs: the mean of the cross-entropies of finding the text and the graph.

    Args:
        graphs: vectors of the molecules.
        texts: vectors of the texts, in the same order.
        temperature: above 0.
    """
    logits = F.normalize(graphs, dim=1) @ F.normalize(texts, dim=1).T / temperature
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
