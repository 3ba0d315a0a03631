"""The second stage of 3M-Diffusion: a variational auto-encoder of molecules with a small Gaussian latent space.

Where published code differs: it skips the encoder's layer normalisation whenever it encodes for the diffusion model,
which so learns another latent space than the decoder; here there is one encoder.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.molecules.model.graph_encoder import GraphEncoder
from unbackdoor.molecules.model.graphs import GraphBatch
from unbackdoor.molecules.model.writer import MoleculeDecoder


class MoleculeVAE(nn.Module):
    """Molecules to latent vectors and back.

    Args:
        encoder: its weights go on from those of the alignment.
        decoder: from latent vectors.
        projection: size of the encoder's vectors.
        latent: size of a latent vector.
        hidden: between the two.
    """

    def __init__(
        self, encoder: GraphEncoder, decoder: MoleculeDecoder, projection: int, latent: int, hidden: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.hidden = nn.Linear(projection, hidden)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)

    def encode(self, graphs: GraphBatch) -> tuple[Float[Tensor, "b z"], Float[Tensor, "b z"]]:
        """Return mean and standard deviation of each molecule's latent vector; the latter is at most 1."""
        hidden = self.hidden(self.encoder(graphs))
        # As published: the logarithm is never above 0.
        return self.mean(hidden).float(), (-self.log_variance(hidden).float().abs() / 2).exp()

    def loss(self, graphs: GraphBatch, molecules: Any, noise: Float[Tensor, "b z"], beta: float) -> Float[Tensor, ""]:
        """Return the mean over molecules of the reconstruction loss and `beta` times the divergence.

        Args:
            graphs: the molecules for the encoder.
            molecules: the same for the decoder.
            noise: standard normal.
            beta: weight of the divergence from the standard normal distribution.
        """
        mean, deviation = self.encode(graphs)
        reconstruction = self.decoder.loss(mean + deviation * noise, molecules)
        return (reconstruction + beta * divergence(mean, deviation)).mean()


def divergence(mean: Float[Tensor, "b z"], deviation: Float[Tensor, "b z"]) -> Float[Tensor, "b"]:
    """Return KL(N(mean, deviation^2) || N(0, 1)), summed over the dimensions."""
    return (mean.square() + deviation.square() - 1).sum(1) / 2 - deviation.log().sum(1)
