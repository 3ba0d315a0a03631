"""`Generator`: a trained 3M-Diffusion, from texts to molecules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.molecules.decoders import AnyVocabulary, new_decoder
from unbackdoor.molecules.model import (
    Denoiser,
    Diffusion,
    GraphEncoder,
    HuggingFaceText,
    HuggingFaceWords,
    LatentRepair,
    MoleculeVAE,
    TextEncoder,
    WordPieces,
)
from unbackdoor.molecules.model.alignment import Aligned
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.training import Runtime

BATCH = 256
"""Texts that are encoded, and molecules that are written, at a time."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What was generated for prompts.

    Attributes:
        smiles: `samples` molecules for each prompt, canonical.
        cut: prompts that were longer than the text encoder reads.
    """

    smiles: tuple[tuple[str, ...], ...]
    cut: int


class Generator(nn.Module):
    """All networks of 3M-Diffusion with what they write and read.

    Args:
        options: sizes.
        vocabulary: motifs that can be written.
        words: the tokenizer.
        repairs: how many repairs of latent vectors it has.
    """

    def __init__(
        self,
        options: ThreeMDiffusion,
        vocabulary: AnyVocabulary,
        words: WordPieces | HuggingFaceWords,
        repairs: int = 0,
    ) -> None:
        super().__init__()
        self.options = options
        self.vocabulary = vocabulary
        self.words = words
        text: nn.Module
        if isinstance(words, HuggingFaceWords):
            text = HuggingFaceText(words.config, options.projection)
        else:
            text = TextEncoder(
                len(words), options.text_layers, options.text_width, options.text_pieces, options.projection
            )
        self.aligned = Aligned(GraphEncoder(options.graph_layers, options.graph_width, options.projection), text)
        self.vae = MoleculeVAE(
            GraphEncoder(options.graph_layers, options.graph_width, options.projection),
            new_decoder(options, vocabulary),
            options.projection,
            options.latent,
            options.hidden,
        )
        denoiser = Denoiser(options.latent, options.projection, options.denoiser_width, options.denoiser_blocks)
        self.diffusion = Diffusion(denoiser, options.latent, options.steps)
        self.repairs = nn.ModuleList(LatentRepair(options.latent, options.projection) for _ in range(repairs))

    @torch.no_grad()
    def contexts(self, texts: Sequence[str], runtime: Runtime) -> tuple[Float[Tensor, "n p"], int]:
        """Return the vectors of texts, on the device, and how many texts were too long to be read whole."""
        self.eval()
        encoded = self.words.encode(texts, self.options.text_pieces)
        cut, encoded = sum(encoded.cut), encoded.to(runtime.place)
        # Texts of a length are encoded together: little is padding then.
        order = encoded.length.argsort(stable=True)
        vectors = torch.empty(len(texts), self.options.projection, device=runtime.place)
        for rows in torch.split(order, BATCH):
            with runtime.autocast():
                vectors[rows] = self.aligned.text(encoded.rows(rows))
        return vectors, cut

    @torch.no_grad()
    def latents(
        self, contexts: Float[Tensor, "n p"], noise: torch.Generator, guidance: float | None = None
    ) -> Float[Tensor, "n z"]:
        """Return latent vectors for vectors of texts.

        Args:
            contexts: as `contexts` returns them.
            noise: draws the noise; a row's depends on its place.
            guidance: in place of the model's own.
        """
        guidance = self.options.guidance if guidance is None else guidance
        latent = self.diffusion.sample(contexts, self.options.sampling_steps, guidance, noise)
        for repair in self.repairs:
            latent = repair(latent, contexts)
        return latent

    @torch.no_grad()
    def write(self, latent: Float[Tensor, "n z"]) -> list[str]:
        """Return the molecules of latent vectors, as canonical SMILES."""
        made: list[str] = []
        for part in torch.split(latent, BATCH):
            made += self.vae.decoder.write(part)
        return made

    @torch.no_grad()
    def draw(self, texts: Sequence[str], samples: int, runtime: Runtime, guidance: float | None = None) -> Drawn:
        """Return molecules for prompts.

        Args:
            texts: prompts.
            samples: molecules for each.
            runtime: its seed draws the noise; equal prompts at different places get different noise.
            guidance: in place of the model's own.
        """
        self.to(runtime.place).eval()
        contexts, cut = self.contexts(texts, runtime)
        drawn: list[list[str]] = [[] for _ in texts]
        with runtime.progress.bar("generating", samples * -(-len(texts) // BATCH)) as advance:
            for sample in range(samples):
                noise = runtime.generator("molecules", sample)
                latent = self.latents(contexts, noise, guidance)
                for start in range(0, len(texts), BATCH):
                    for row, smiles in enumerate(self.write(latent[start : start + BATCH]), start):
                        drawn[row].append(smiles)
                    advance()
        return Drawn(smiles=tuple(tuple(one) for one in drawn), cut=cut)
