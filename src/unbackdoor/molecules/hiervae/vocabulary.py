"""`HierVocabulary`: the motifs of HierVAE with their marked atoms, and the parts that are one motif each."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from unbackdoor.errors import DataError
from unbackdoor.files import sha256
from unbackdoor.molecules.hiervae.attachment import MAX_LETTERS, Attachment
from unbackdoor.molecules.hiervae.graph import Graph, parts_of
from unbackdoor.molecules.hiervae.tree import KNOWN, MotifTree, tree_of

MAX_ATTACHMENTS = 100_000


@dataclass(frozen=True)
class HierVocabulary:
    """What HierVAE's decoder chooses from.

    Attributes:
        parts: canonical SMILES of the parts that are one motif each; others are taken apart into rings and bonds.
        names: SMILES of the attachments, the most frequent first.
    """

    parts: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def attachments(self) -> tuple[Attachment, ...]:
        """Motifs with marked atoms."""
        return tuple(Attachment.named(name) for name in self.names)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each attachment and, after all of these, of each motif with one marked atom alone."""
        anchors = dict.fromkeys(anchor for one in self.attachments for anchor in one.anchors)
        return {name: number for number, name in enumerate(dict.fromkeys((*self.names, *anchors)))}

    @cached_property
    def motif_of(self) -> tuple[int, ...]:
        """The number of each attachment's motif."""
        numbers: dict[str, int] = {}
        return tuple(numbers.setdefault(one.motif, len(numbers)) for one in self.attachments)

    def covers(self, tree: MotifTree) -> bool:
        """Return whether every node can be chosen."""
        return all(node.attachment.smiles in self._known for node in tree.nodes)

    def to_json(self) -> dict[str, Any]:
        """Return the vocabulary as JSON values."""
        return {"parts": list(self.parts), "attachments": list(self.names)}

    def digest(self) -> str:
        """Return the SHA-256 of the vocabulary."""
        return sha256(json.dumps(self.to_json()).encode())

    @classmethod
    def from_json(cls, content: object) -> HierVocabulary:
        """Return what `to_json` described, checked: it may be a stranger's.

        Raises:
            DataError: no lists of texts, or one of them is no motif.
        """
        told = content if isinstance(content, dict) else {}
        parts, names = _texts(told.get("parts")), _texts(told.get("attachments"))
        if parts is None or not names:
            raise DataError("HierVAE's vocabulary is a list of parts and one of motifs, none twice; build it again")
        for name in names:
            Attachment.named(name)
        return cls(parts, names)


def _texts(content: object) -> tuple[str, ...] | None:
    """Return different texts of a stranger's, or None if that is not what it is."""
    if not isinstance(content, list) or len(content) > MAX_ATTACHMENTS:
        return None
    texts = tuple(one for one in content if isinstance(one, str) and len(one) <= MAX_LETTERS)
    return texts if len(set(texts)) == len(content) else None


def read_trees(
    smiles: Sequence[str], common: int, vocabulary: HierVocabulary | None
) -> tuple[HierVocabulary, list[int], list[MotifTree]]:
    """Return a vocabulary, the molecules that it can write, and their trees.

    Args:
        smiles: canonical and without stereochemistry.
        common: molecules in which a part must occur to be one motif.
        vocabulary: to use; by default that of the molecules.

    Raises:
        DataError: none of them is a tree of motifs.
    """
    if vocabulary is None:
        counts = Counter(part for one in smiles for part in _parts(one))
        parts = tuple(sorted(part for part, count in counts.items() if count >= common))
    else:
        parts = vocabulary.parts
    common_parts = frozenset(parts)
    trees: dict[int, MotifTree] = {}
    for row, one in enumerate(smiles):
        try:
            trees[row] = tree_of(one, common_parts)
        # Counted by whoever asks: it is not in the list of covered ones.
        except DataError:
            continue
    if vocabulary is None:
        kinds = Counter(name for tree in trees.values() for name in {node.attachment.smiles for node in tree.nodes})
        names = tuple(sorted(kinds, key=lambda name: (-kinds[name], name)))
        if not 1 <= len(names) <= MAX_ATTACHMENTS:
            raise DataError(f"{len(names):,} kinds of motifs occur; HierVAE's vocabulary has 1 to {MAX_ATTACHMENTS:,}")
        vocabulary = HierVocabulary(parts, names)
    covered = [row for row, tree in trees.items() if vocabulary.covers(tree)]
    return vocabulary, covered, [trees[row] for row in covered]


@lru_cache(maxsize=KNOWN)
def _parts(smiles: str) -> frozenset[str]:
    """Return the parts of a molecule that may be motifs."""
    return frozenset(part for part, _ in parts_of(Graph.of(smiles)))
