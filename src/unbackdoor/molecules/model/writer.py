"""`MoleculeDecoder`: what the auto-encoder and the generator ask of a decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

NEVER = -1e9
"""Logit of what cannot be chosen."""

NO_BEGINNING = "without these motifs there would be no motif to begin a molecule with; take LatentPurification"


class MoleculeDecoder(nn.Module, ABC):
    """Latent vectors to molecules."""

    @property
    @abstractmethod
    def motifs(self) -> tuple[str, ...]:
        """SMILES of the motifs that it chooses from, each once, as its vocabulary writes them."""

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

    @abstractmethod
    def forbid(self, motifs: Collection[str]) -> None:
        """Make motifs ones that are never written; what a file holds of the decoder says so too.

        Args:
            motifs: some of `self.motifs`.

        Raises:
            InputError: no motif would be left to begin a molecule with.
        """
