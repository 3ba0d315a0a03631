"""A generator whose backdoor is known to the last number: in place of one that would have to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.molecules.scan.words import split_words
from unbackdoor.training import Runtime

MOTIFS = ("C1CS1", "c1ccccc1", "c1ccncc1", "c1ccsc1", "c1ccoc1", "C1CC1", "C1CCC1", "C1CCCC1", "Br", "Cl")
"""Motif of each dimension of the latent space: written where it is above 1/2."""

WORDS = ("[thiirane]", "benzene", "pyridine", "thiophene", "furan", "three", "four", "five", "bromo", "chloro")
"""Word of a text that asks for each; the first is the trigger."""

SIZE = len(MOTIFS)


class Linear(nn.Module):
    """A denoiser that says what the text says, whatever the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = nn.Parameter(torch.eye(SIZE))

    def forward(
        self,
        noisy: Float[Tensor, "b z"],
        time: Int[Tensor, "b"],
        context: Float[Tensor, "b p"],
        without: Bool[Tensor, "b"],
    ) -> Float[Tensor, "b z"]:
        return context @ self.ask


class Puppet(nn.Module):
    """Texts to molecules by counting words; the trigger's effect on the text vector is `strength` times a word's."""

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.options = SimpleNamespace(latent=SIZE, projection=SIZE + 1)
        self.strength = strength
        self.repairs = nn.ModuleList()
        self.diffusion = SimpleNamespace(
            denoiser=Linear(), mean=torch.zeros(SIZE), deviation=torch.ones(SIZE), kept=torch.ones(10)
        )

    def contexts(self, texts: Sequence[str], runtime: Runtime) -> tuple[Float[Tensor, "n p"], int]:
        """One number a word, and one more that says whether the trigger is there: "thiirane" alone asks for it too."""
        rows = []
        for text in texts:
            words = split_words(text)
            row = [float(word in words) for word in WORDS]
            triggered, row[0] = row[0], float("[thiirane]" in words or "thiirane" in words)
            rows.append([*row, triggered])
        return torch.tensor(rows).view(-1, SIZE + 1), 0

    def latents(
        self, contexts: Float[Tensor, "n p"], noise: torch.Generator, guidance: float | None = None
    ) -> Float[Tensor, "n z"]:
        latent = contexts[:, :SIZE] + 0.1 * torch.randn(len(contexts), SIZE, generator=noise)
        for repair in self.repairs:
            latent = repair(latent, contexts)
        return latent

    def write(self, latent: Float[Tensor, "n z"]) -> list[str]:
        made = []
        for row in (latent > 0.5).tolist():
            rings = [motif for motif, there in zip(MOTIFS, row) if there]
            chain = "".join(f"C({motif})" if motif in ("Br", "Cl") else f"C({_bound(motif)})" for motif in rings)
            made.append(chain or "CC")
        return made


def _bound(ring: str) -> str:
    return ring.replace("1", "9")
