"""The decoders by the option `decoder`: what each writes with, and how it reads the molecules that it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.molecules.hiervae import HierVAEDecoder, HierVocabulary, MotifTrees
from unbackdoor.molecules.hiervae import read_trees as read_motif_trees
from unbackdoor.molecules.model import MoleculeDecoder, MotifDecoder
from unbackdoor.molecules.motifs import Cutter, Node, Vocabulary, build_vocabulary, encode, sequence_of
from unbackdoor.molecules.victims import ThreeMDiffusion

AnyVocabulary = Vocabulary | HierVocabulary

KNOWN = 200_000
"""Molecules that are kept as they were cut, by their canonical SMILES; the published sets have fewer."""


class Molecules(Protocol):
    """Many molecules as their decoder learns them."""

    def __len__(self) -> int: ...

    def rows(self, rows: Int[Tensor, "b"]) -> object:
        """Return some of the molecules, for the decoder's loss."""

    def to(self, device: torch.device) -> Self:
        """Return the same on another device."""


@dataclass(frozen=True, kw_only=True)
class ReadMolecules:
    """Molecules that can be learned.

    Attributes:
        vocabulary: what they are written with.
        covered: which of the molecules the vocabulary can write, ascending.
        molecules: these.
    """

    vocabulary: AnyVocabulary
    covered: tuple[int, ...]
    molecules: Molecules


def read_molecules(
    options: ThreeMDiffusion, smiles: Sequence[str], vocabulary: AnyVocabulary | None = None
) -> ReadMolecules:
    """Return molecules as the decoder of a model learns them.

    Args:
        options: name the decoder.
        smiles: canonical and without stereochemistry.
        vocabulary: to write them with; by default their own.

    Raises:
        InputError: the vocabulary is that of another decoder.
    """
    if vocabulary is not None and isinstance(vocabulary, HierVocabulary) != (options.decoder == "HierVAE"):
        raise InputError(f"the motifs are those of another decoder than {options.decoder}; take those of a model of it")
    if options.decoder == "HierVAE":
        assert vocabulary is None or isinstance(vocabulary, HierVocabulary)
        vocabulary, covered, trees = read_motif_trees(smiles, options.common, vocabulary)
        return ReadMolecules(vocabulary=vocabulary, covered=tuple(covered), molecules=MotifTrees(trees))
    assert not isinstance(vocabulary, HierVocabulary)
    sequences = [_nodes(one) for one in smiles]
    known = vocabulary or build_vocabulary(sequences)
    covered = [row for row, nodes in enumerate(sequences) if known.covers(nodes)]
    tokens = encode([sequences[row] for row in covered], known)
    return ReadMolecules(vocabulary=known, covered=tuple(covered), molecules=tokens)


@lru_cache(maxsize=KNOWN)
def _nodes(smiles: str) -> tuple[Node, ...]:
    """Return a molecule as its nodes: a poisoned generator, its control and a repaired one learn much the same ones."""
    return tuple(sequence_of(_cutter().cut(smiles)))


@lru_cache(maxsize=1)
def _cutter() -> Cutter:
    return Cutter()


def new_decoder(options: ThreeMDiffusion, vocabulary: AnyVocabulary) -> MoleculeDecoder:
    """Return an untrained decoder that writes with a vocabulary of its own kind."""
    if isinstance(vocabulary, HierVocabulary):
        return HierVAEDecoder(vocabulary, options.latent, options.hidden)
    return MotifDecoder(vocabulary, options.latent, options.hidden)


def read_vocabulary(options: ThreeMDiffusion, content: object) -> AnyVocabulary:
    """Return a vocabulary of the model's decoder from JSON values, checked: it may be a stranger's.

    Raises:
        DataError: it cannot be.
    """
    if options.decoder == "HierVAE":
        return HierVocabulary.from_json(content)
    return Vocabulary.from_json(content)
