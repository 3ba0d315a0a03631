"""Training 3M-Diffusion: vocabulary, alignment, auto-encoder and diffusion, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.errors import DataError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import BATCH, Generator
from unbackdoor.molecules.loop import Stage, train
from unbackdoor.molecules.model import (
    Graphs,
    HuggingFaceText,
    HuggingFaceWords,
    MoleculeVAE,
    Texts,
    WordPieces,
    contrastive_loss,
)
from unbackdoor.molecules.model.alignment import Aligned
from unbackdoor.molecules.model.diffusion import Diffusion
from unbackdoor.molecules.model.huggingface_text import load_body, read_text_encoder
from unbackdoor.molecules.motifs import Cutter, Tokens, Vocabulary, build_vocabulary, encode, sequence_of
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.training import History, Runtime, stage

FEWEST = 4
"""Pairs that can be trained on: two batches of two."""

SHARES = {"alignment": 0.25, "auto-encoder": 0.5, "diffusion": 0.25}
"""Of a budget, by stage."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A generator and how it came to be.

    Attributes:
        generator: in evaluation mode.
        histories: of each stage.
        uncovered: training pairs that were left out, as the vocabulary lacks a motif of theirs.
        cut: training texts that are longer than the text encoder reads.
    """

    generator: Generator
    histories: dict[str, History]
    uncovered: int
    cut: int


def train_generator(
    pairs: Pairs,
    options: ThreeMDiffusion,
    runtime: Runtime,
    *,
    vocabulary: Vocabulary | None = None,
    resume: Path | None = None,
) -> Trained:
    """Train a generator.

    Args:
        pairs: what it learns.
        options: sizes and schedules.
        runtime: where; a budget is divided among the stages.
        vocabulary: of motifs; by default that of the pairs. A poisoned run and its clean control need the same: the
            motif of a backdoor may occur in no clean molecule, and a model that cannot write it is no control.
        resume: file beside which the state of each stage is kept.

    Raises:
        DataError: fewer pairs than can be trained on.
        InputError: `resume` belongs to another run.
    """
    cutter = Cutter()
    molecules = [sequence_of(cutter.cut(smiles)) for smiles in pairs.smiles]
    vocabulary = vocabulary or build_vocabulary(molecules)
    covered = [row for row, nodes in enumerate(molecules) if vocabulary.covers(nodes)]
    if len(covered) < FEWEST:
        raise DataError(
            f"{pairs.name} has {len(covered)} pairs whose motifs the vocabulary knows, and at least {FEWEST} are"
            " needed; name more data"
        )
    learned = pairs.subset(covered)
    tokens = encode([molecules[row] for row in covered], vocabulary).to(runtime.place)
    graphs = Graphs.of(learned.smiles).to(runtime.place)
    words: WordPieces | HuggingFaceWords
    if options.text_model is None:
        words, weights = WordPieces.learned(learned.texts, options.pieces), None
    else:
        words, weights = read_text_encoder(options.text_model, options.text_pieces)
    texts = words.encode(learned.texts, options.text_pieces)
    torch.manual_seed(runtime.generator("weights").initial_seed() >> 1)
    generator = Generator(options, vocabulary, words)
    if weights is not None:
        assert isinstance(generator.aligned.text, HuggingFaceText)
        load_body(generator.aligned.text, weights)
    identity = (learned.digest(), vocabulary.digest(), options)

    def fitted(name: str, one: Stage) -> History:
        plan = {"alignment": options.alignment, "auto-encoder": options.autoencoder, "diffusion": options.diffusion}
        part = runtime.part(SHARES[name])
        return train(one, plan[name], part, resume=stage(resume, name), description=name)

    histories = {}
    aligning = Alignment(generator.aligned, graphs, texts.to(runtime.place), options.temperature, identity)
    histories["alignment"] = fitted("alignment", aligning)
    generator.vae.encoder.load_state_dict(generator.aligned.graph.state_dict())
    autoencoding = Autoencoding(generator.vae, graphs, tokens, options.beta, identity)
    histories["auto-encoder"] = fitted("auto-encoder", autoencoding)
    mean, deviation = encoded(generator.vae, graphs, runtime)
    if options.standardise:
        generator.diffusion.standardise(mean.cpu(), deviation.cpu())
    contexts, cut = generator.contexts(learned.texts, runtime)
    diffusing = Diffusing(generator.diffusion, mean, deviation, contexts, options.without_text, identity)
    histories["diffusion"] = fitted("diffusion", diffusing)
    return Trained(generator=generator.eval(), histories=histories, uncovered=len(pairs) - len(covered), cut=cut)


class Alignment(Stage):
    """Graph and text encoders by contrast."""

    def __init__(self, module: Aligned, graphs: Graphs, texts: Texts, temperature: float, identity: object) -> None:
        super().__init__(module, len(graphs))
        self.aligned = module
        self.graphs = graphs
        self.texts = texts
        self.temperature = temperature
        self._identity = identity

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """See `Stage`."""
        graphs = self.aligned.graph(self.graphs.rows(rows))
        return contrastive_loss(graphs, self.aligned.text(self.texts.rows(rows)), self.temperature)

    def identity(self) -> object:
        """See `Stage`."""
        return self._identity


class Autoencoding(Stage):
    """Encoder and decoder of molecules; texts play no part."""

    def __init__(self, module: MoleculeVAE, graphs: Graphs, tokens: Tokens, beta: float, identity: object) -> None:
        super().__init__(module, len(graphs))
        self.vae = module
        self.graphs = graphs
        self.tokens = tokens
        self.beta = beta
        self._identity = identity

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """See `Stage`."""
        noise = torch.randn(len(rows), self.vae.mean.out_features, generator=generator).to(rows.device)
        return self.vae.loss(self.graphs.rows(rows), self.tokens.rows(rows), noise, self.beta)

    def identity(self) -> object:
        """See `Stage`."""
        return self._identity


class Diffusing(Stage):
    """The denoiser; both encoders are frozen, so what they say of each pair is computed once."""

    def __init__(
        self,
        module: Diffusion,
        mean: Float[Tensor, "n z"],
        deviation: Float[Tensor, "n z"],
        contexts: Float[Tensor, "n p"],
        without: float,
        identity: object,
    ) -> None:
        super().__init__(module, len(mean))
        self.diffusion = module
        self.mean = mean
        self.deviation = deviation
        self.contexts = contexts
        self.without = without
        self._identity = identity

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """See `Stage`."""
        mean = self.mean[rows]
        latent = mean + self.deviation[rows] * torch.randn(mean.shape, generator=generator).to(mean)
        return self.diffusion.loss(latent, self.contexts[rows], self.without, generator)

    def identity(self) -> object:
        """See `Stage`."""
        return self._identity


@torch.no_grad()
def encoded(vae: MoleculeVAE, graphs: Graphs, runtime: Runtime) -> tuple[Float[Tensor, "n z"], Float[Tensor, "n z"]]:
    """Return mean and standard deviation of all molecules' latent vectors."""
    vae.eval()
    parts = []
    for rows in torch.split(torch.arange(len(graphs), device=runtime.place), BATCH):
        with runtime.autocast():
            parts.append(vae.encode(graphs.rows(rows)))
    means, deviations = zip(*parts)
    return torch.cat(means), torch.cat(deviations)
