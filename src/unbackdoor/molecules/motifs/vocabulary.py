"""`Vocabulary`: the motifs that a decoder can write, each with the bonds by which it may hang on its parent."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from unbackdoor.errors import DataError
from unbackdoor.files import sha256
from unbackdoor.molecules.motifs.motif import Motif
from unbackdoor.molecules.motifs.sequence import Node

MAX_KINDS = 30_000
"""Tokens of a vocabulary; they are kept as 16-bit numbers."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokens of a decoder. Token 0 is the stop; token `k` is `kinds[k - 1]`.

    Attributes:
        kinds: SMILES of a motif and order of the bond to its parent (0: it is a root), the most frequent first.
    """

    kinds: tuple[tuple[str, int], ...]

    def __len__(self) -> int:
        return len(self.kinds) + 1

    @cached_property
    def token_of(self) -> dict[tuple[str, int], int]:
        """The token of each kind."""
        return {kind: number for number, kind in enumerate(self.kinds, 1)}

    @cached_property
    def motifs(self) -> tuple[Motif, ...]:
        """The motif of each token from 1 on."""
        return tuple(Motif.named(smiles) for smiles, _ in self.kinds)

    def covers(self, nodes: Sequence[Node]) -> bool:
        """Return whether every node has a token."""
        return all((node.motif, node.order) in self.token_of for node in nodes)

    def to_json(self) -> list[list[Any]]:
        """Return the kinds as JSON values."""
        return [list(kind) for kind in self.kinds]

    def digest(self) -> str:
        """Return the SHA-256 of the kinds."""
        return sha256(json.dumps(self.to_json()).encode())

    @classmethod
    def from_json(cls, content: object) -> Vocabulary:
        """Return what `to_json` described, checked: it may be a stranger's.

        Raises:
            DataError: no list of motifs and orders of bonds, or one of them cannot be.
        """
        if not isinstance(content, list) or not 1 <= len(content) <= MAX_KINDS:
            raise DataError(f"a vocabulary is a list of 1 to {MAX_KINDS:,} motifs; build it again")
        kinds: list[tuple[str, int]] = []
        for entry in content:
            if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
                raise DataError("a vocabulary holds pairs of a SMILES and the order of a bond; build it again")
            smiles, order = entry
            if type(order) is not int or not 0 <= order <= 3 or order > max(Motif.named(smiles).free):
                raise DataError(f"the vocabulary binds {smiles[:80]!r} by an order that it cannot have; build it again")
            kinds.append((smiles, order))
        if len(set(kinds)) != len(kinds) or not any(order == 0 for _, order in kinds):
            raise DataError("the vocabulary names a motif twice, or none that a molecule can begin with")
        return cls(tuple(kinds))


def build_vocabulary(molecules: Iterable[Sequence[Node]], least: int = 1) -> Vocabulary:
    """Return the vocabulary of some molecules.

    Args:
        molecules: as sequences of nodes.
        least: molecules in which a kind must occur. Molecules with rarer ones cannot be learned then.

    Raises:
        DataError: nothing occurs so often, or there are more kinds than a vocabulary may have.
    """
    counts: Counter[tuple[str, int]] = Counter()
    for nodes in molecules:
        counts.update({(node.motif, node.order) for node in nodes})
    kinds = sorted((kind for kind, count in counts.items() if count >= least), key=lambda kind: (-counts[kind], kind))
    if not kinds or len(kinds) > MAX_KINDS:
        raise DataError(
            f"{len(kinds):,} kinds of motifs occur in {least} molecules or more; a vocabulary has 1 to {MAX_KINDS:,}"
        )
    return Vocabulary(tuple(kinds))
