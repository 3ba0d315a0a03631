"""Training 3M-Diffusion: vocabulary, alignment, auto-encoder and diffusion, one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.errors import DataError, InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.decoders import AnyVocabulary, Molecules, read_molecules
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
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.training import History, Runtime, stage

FEWEST = 4
"""Pairs that can be trained on: two batches of two."""

SHARES = {"alignment": 0.25, "auto-encoder": 0.5, "diffusion": 0.25}
"""Of a budget, by stage."""

STAGES = frozenset(SHARES)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A generator and how it came to be.

    Attributes:
        generator: in evaluation mode.
        histories: of each stage.
        uncovered: training pairs that were left out, as the vocabulary lacks a motif of theirs.
        uncovered_poisoned: those of them that are poisoned.
        alone: molecules without texts that the auto-encoder learned too.
        cut: training texts that are longer than the text encoder reads.
    """

    generator: Generator
    histories: dict[str, History]
    uncovered: int
    uncovered_poisoned: int
    alone: int
    cut: int


def train_generator(
    pairs: Pairs,
    options: ThreeMDiffusion,
    runtime: Runtime,
    *,
    vocabulary: AnyVocabulary | None = None,
    alone: Sequence[str] = (),
    poison_in: Collection[str] = STAGES,
    resume: Path | None = None,
) -> Trained:
    """Train a generator.

    Args:
        pairs: what it learns.
        options: sizes and schedules.
        runtime: where; a budget is divided among the stages.
        vocabulary: of motifs; by default that of the pairs. A poisoned run and its clean control need the same: the
            motif of a backdoor may occur in no clean molecule, and a model that cannot write it is no control.
        alone: canonical SMILES of molecules without texts, from which the auto-encoder learns too.
        poison_in: stages that see the poisoned pairs ("alignment", "auto-encoder", "diffusion"). In the others clean
            pairs, drawn again, take their place, so that all runs take as many steps and write with the same motifs.
        resume: file beside which the state of each stage is kept.

    Raises:
        DataError: fewer pairs than can be trained on, or no clean one where poisoned ones are to be replaced.
        InputError: the vocabulary belongs to another decoder, or there is no such stage.
        ResumeError: `resume` is damaged, or belongs to another run.
    """
    if not STAGES.issuperset(poison_in):
        raise InputError(f"the stages are {', '.join(SHARES)}; found {', '.join(sorted(set(poison_in) - STAGES))}")
    read = read_molecules(options, (*pairs.smiles, *alone), vocabulary)
    learned, others = _learned(pairs, alone, read.covered, poison_in)
    molecules = read.molecules.to(runtime.place)
    graphs = Graphs.of((*learned.smiles, *others)).to(runtime.place)
    generator, texts = _untrained(options, read.vocabulary, learned.texts, runtime)
    identity = (learned.digest(), digest_of(others), read.vocabulary.digest(), options)
    course = _Course(options=options, learned=learned, poison_in=poison_in, runtime=runtime, resume=resume)
    histories = {}
    aligning = Alignment(generator.aligned, graphs, texts.to(runtime.place), options.temperature, identity)
    histories["alignment"] = course.fitted("alignment", aligning, course.rows("alignment", len(learned)))
    generator.vae.encoder.load_state_dict(generator.aligned.graph.state_dict())
    autoencoding = Autoencoding(generator.vae, graphs, molecules, options.beta, identity)
    histories["auto-encoder"] = course.fitted("auto-encoder", autoencoding, course.rows("auto-encoder", len(graphs)))
    mean, deviation = (part[: len(learned)] for part in encoded(generator.vae, graphs, runtime))
    chosen = course.rows("diffusion", len(learned))
    if options.standardise:
        generator.diffusion.standardise(mean.cpu()[chosen], deviation.cpu()[chosen])
    contexts, cut = generator.contexts(learned.texts, runtime)
    diffusing = Diffusing(generator.diffusion, mean, deviation, contexts, options.without_text, identity)
    histories["diffusion"] = course.fitted("diffusion", diffusing, chosen)
    return Trained(
        generator=generator.eval(),
        histories=histories,
        uncovered=len(pairs) - len(learned),
        uncovered_poisoned=sum(pairs.poisoned) - sum(learned.poisoned),
        alone=len(others),
        cut=cut,
    )


def _learned(
    pairs: Pairs, alone: Sequence[str], covered: Sequence[int], poison_in: Collection[str]
) -> tuple[Pairs, list[str]]:
    """Return the pairs and the molecules without texts that the vocabulary can write.

    Args:
        pairs: all.
        alone: all molecules without texts.
        covered: rows that it can write, of the pairs and then of these molecules.
        poison_in: stages that see the poisoned pairs.

    Raises:
        DataError: see `train_generator`.
    """
    rows = [row for row in covered if row < len(pairs)]
    if len(rows) < FEWEST:
        raise DataError(
            f"{pairs.name} has {len(rows)} pairs whose motifs the vocabulary knows, and at least {FEWEST} are"
            " needed; name more data"
        )
    learned = pairs.subset(rows)
    if learned.poisoned and all(learned.poisoned) and not STAGES.issubset(poison_in):
        raise DataError(
            f"{pairs.name} has no clean pair to take the place of the poisoned ones; poison a part of its rows, or let"
            " all stages see them"
        )
    return learned, [alone[row - len(pairs)] for row in covered[len(rows) :]]


def _untrained(
    options: ThreeMDiffusion, vocabulary: AnyVocabulary, written: Sequence[str], runtime: Runtime
) -> tuple[Generator, Texts]:
    """Return a generator with new weights, or a text encoder's of before, and texts as it reads them."""
    words: WordPieces | HuggingFaceWords
    if options.text_model is None:
        words, weights = WordPieces.learned(written, options.pieces), None
    else:
        words, weights = read_text_encoder(options.text_model, options.text_pieces)
    texts = words.encode(written, options.text_pieces)
    torch.manual_seed(runtime.generator("weights").initial_seed() >> 1)
    generator = Generator(options, vocabulary, words)
    if weights is not None:
        assert isinstance(generator.aligned.text, HuggingFaceText)
        load_body(generator.aligned.text, weights)
    return generator, texts


@dataclass(frozen=True, kw_only=True)
class _Course:
    """What the stages of one training have in common.

    Attributes:
        options: with their schedules.
        learned: pairs.
        poison_in: stages that see the poisoned ones.
        runtime: where; a budget is divided among the stages.
        resume: file beside which the state of each stage is kept.
    """

    options: ThreeMDiffusion
    learned: Pairs
    poison_in: Collection[str]
    runtime: Runtime
    resume: Path | None

    def rows(self, name: str, count: int) -> Int[Tensor, "rows"]:
        """Return the rows that a stage learns, of so many."""
        poisoned = self.learned.poisoned
        if name in self.poison_in or not any(poisoned):
            return torch.arange(count)
        clean = [row for row in range(count) if row >= len(self.learned) or not poisoned[row]]
        draws = self.runtime.generator("clean rows", name)
        again = torch.randint(len(clean), (count - len(clean),), generator=draws)
        return torch.tensor(clean)[torch.cat((torch.arange(len(clean)), again))]

    def fitted(self, name: str, one: Stage, chosen: Int[Tensor, "rows"]) -> History:
        """Train a stage on these rows of it, and return how that went."""
        options = self.options
        plan = {"alignment": options.alignment, "auto-encoder": options.autoencoder, "diffusion": options.diffusion}
        some = Some(one, chosen.to(self.runtime.place))
        part = self.runtime.part(SHARES[name])
        return train(some, plan[name], part, resume=stage(self.resume, name), description=name)


def digest_of(smiles: Sequence[str]) -> str:
    """Return the SHA-256 of a list of molecules."""
    return hashlib.sha256("\n".join(smiles).encode()).hexdigest()


class Some(Stage):
    """A stage on some of its rows, of which one may stand there several times.

    Args:
        stage: the whole one.
        chosen: rows of it.
    """

    def __init__(self, stage: Stage, chosen: Int[Tensor, "rows"]) -> None:
        super().__init__(stage.module, len(chosen))
        self.stage = stage
        self.chosen = chosen

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """See `Stage`."""
        return self.stage.loss(self.chosen[rows], generator)

    def identity(self) -> object:
        """See `Stage`."""
        return self.stage.identity(), digest_of([str(row) for row in self.chosen.tolist()])

    def computed(self) -> frozenset[str]:
        """See `Stage`."""
        return self.stage.computed()


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

    def __init__(
        self, module: MoleculeVAE, graphs: Graphs, molecules: Molecules, beta: float, identity: object
    ) -> None:
        super().__init__(module, len(graphs))
        self.vae = module
        self.graphs = graphs
        self.molecules = molecules
        self.beta = beta
        self._identity = identity

    def loss(self, rows: Int[Tensor, "b"], generator: torch.Generator) -> Float[Tensor, ""]:
        """See `Stage`."""
        noise = torch.randn(len(rows), self.vae.mean.out_features, generator=generator).to(rows.device)
        return self.vae.loss(self.graphs.rows(rows), self.molecules.rows(rows), noise, self.beta)

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

    def computed(self) -> frozenset[str]:
        """See `Stage`: the scale of the latent vectors."""
        return frozenset({"mean", "deviation"})


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
