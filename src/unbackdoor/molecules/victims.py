"""3M-Diffusion: Zhu, Xiao, Honavar, "3M-Diffusion: Latent Multi-Modal Diffusion for Language-Guided Molecular Structure
Generation", COLM 2024; its sizes and schedules.

Text is aligned with molecules by contrast; molecules are encoded into a small latent space, from which a decoder writes
them motif by motif; a diffusion model makes latent vectors from text. Where this version differs from published code,
the modules of `unbackdoor.molecules.model` say so; what all differences have in common is that one vocabulary of motifs
can be handed to several runs, and that networks that are not trained are in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from unbackdoor.errors import InputError
from unbackdoor.molecules.loop import Plan
from unbackdoor.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ThreeMDiffusion:
    """The published sizes and schedules.

    Attributes:
        graph_layers: of the graph encoder.
        graph_width: of its atoms' vectors.
        projection: size of the vectors of texts and molecules.
        pieces: of the tokenizer's vocabulary, at most.
        text_model: folder of a Hugging Face text encoder, such as SciBERT, from whose weights the alignment starts; by
            default a Transformer of `text_layers` and `text_width` learns from scratch.
        text_layers: of the text encoder.
        text_width: of its vectors.
        text_pieces: of a text that are read; the rest is cut off.
        temperature: of the alignment.
        alignment: how text and graph encoders are trained.
        decoder: "motifs" (one recurrent network over the sequence of motifs) or "HierVAE" (as published: messages on
            three levels, step by step; many times slower).
        common: for HierVAE, molecules in which a part must occur to be one motif; others are taken apart into rings
            and bonds.
        latent: size of a latent vector.
        hidden: width of the decoder.
        beta: weight of the divergence in the auto-encoder.
        autoencoder: how encoder and decoder are trained.
        denoiser_width: of the diffusion model's layers.
        denoiser_blocks: its layers.
        steps: of the noise schedule.
        without_text: share of the rows that lose their text in training, for guidance.
        standardise: whether latent vectors are standardised, each dimension by itself.
        diffusion: how the denoiser is trained.
        sampling_steps: of DDIM, at most `steps`.
        guidance: weight of the text in sampling; 1: the estimate with text alone.
    """

    # Since attention is in float32 on processors.
    revision: ClassVar[int] = 1
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    graph_layers: int = 5
    graph_width: int = 300
    projection: int = 256
    pieces: int = 8000
    text_model: Path | None = None
    text_layers: int = 6
    text_width: int = 384
    text_pieces: int = 128
    temperature: float = 0.1
    alignment: Plan = Plan(epochs=50, batch_size=256, learning_rate=1e-4, weight_decay=0.05)
    decoder: Literal["motifs", "HierVAE"] = "motifs"
    common: int = 45
    latent: int = 24
    hidden: int = 250
    beta: float = 0.1
    autoencoder: Plan = Plan(epochs=50, batch_size=20, optimizer="Adam", schedule="decay", clip=20.0)
    denoiser_width: int = 256
    denoiser_blocks: int = 8
    steps: int = 100
    without_text: float = 0.1
    standardise: bool = True
    diffusion: Plan = Plan(epochs=500, batch_size=20, weight_decay=1e-5, clip=1.0, ema=0.9999)
    sampling_steps: int = 50
    guidance: float = 0.8

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if type(value) is int and name != "sampling_steps"}
        for name, value in sizes.items():
            if not 1 <= value <= MAX_SIZE:
                raise InputError(f"{name} must lie between 1 and {MAX_SIZE:,}, found {value}")
        if self.decoder not in ("motifs", "HierVAE"):
            raise InputError(f"the decoder is motifs or HierVAE, found {self.decoder!r}")
        layers = max(self.graph_layers, self.text_layers, self.denoiser_blocks)
        if layers > MAX_LAYERS:
            raise InputError(f"no network may have more than {MAX_LAYERS} layers, found {layers}")
        if self.text_width > 32 and self.text_width % (self.text_width // 32):
            raise InputError(
                f"text_width must be a multiple of its {self.text_width // 32} heads, found {self.text_width}; take a"
                " multiple of 32"
            )
        if self.text_pieces < 3:
            raise InputError(f"text_pieces must be 3 or more, found {self.text_pieces}")
        if not 1 <= self.sampling_steps <= self.steps:
            raise InputError(f"sampling_steps must lie between 1 and steps ({self.steps}), found {self.sampling_steps}")
        if self.steps < SHORTEST:
            raise InputError(f"steps must be {SHORTEST} or more, or the noise grows beyond all; found {self.steps}")
        if not (self.temperature > 0 and self.beta >= 0 and 0 <= self.without_text < 1 and self.guidance >= 0):
            raise InputError(
                "temperature must be above 0, beta and guidance 0 or more, and without_text 0 or more and below 1,"
                f" found {self.temperature}, {self.beta}, {self.guidance} and {self.without_text}"
            )


@dataclass(frozen=True, kw_only=True)
class ThreeMDiffusionSmall(ThreeMDiffusion):
    """The same, small enough for two processor cores."""

    graph_layers: int = 4
    graph_width: int = 128
    text_layers: int = 2
    text_width: int = 128
    # Of few pairs, large batches make so few steps that the alignment is far from done.
    alignment: Plan = Plan(epochs=12, batch_size=64, learning_rate=1e-3, schedule="one-cycle", weight_decay=0.05)
    hidden: int = 256
    # Beside the pairs' own, 15,000 molecules without texts make these many steps.
    autoencoder: Plan = Plan(
        epochs=16, batch_size=64, optimizer="Adam", learning_rate=1.5e-3, schedule="one-cycle", clip=20.0
    )
    diffusion: Plan = Plan(epochs=200, batch_size=256, weight_decay=1e-5, clip=1.0, ema=0.999)


MAX_SIZE = 100_000
MAX_LAYERS = 200
SHORTEST = 21
"""Steps of the noise schedule with which no share of the noise is above 1."""

VICTIMS: Registry[ThreeMDiffusion] = Registry("molecule model", ThreeMDiffusionSmall, ThreeMDiffusion)
"""Molecule generators by name."""
