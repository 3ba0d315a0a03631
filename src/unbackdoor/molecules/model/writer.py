"""`MoleculeDecoder`: what the auto-encoder and the generator ask of a decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class MoleculeDecoder(nn.Module, ABC):
    """Latent vectors to molecules."""

    @abstractmethod
    def loss(self, latent: Float[Tensor, "b z"], molecules: Any) -> Float[Tensor, "b"]:
        """Return the negative log-likelihood of each molecule, all its decisions added up.

        Args:
            latent: one vector a molecule.
            molecules: rows of what `decoders.read_molecules` made for this decoder.
        """

    @abstractmethod
    def write(self, latent: Float[Tensor, "b z"]) -> list[str]:
        """Return the canonical SMILES of the molecules that are most likely, decision by decision; all are valid."""
