"""`Tokens`: many molecules as one array, so that a whole batch is taught in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.errors import DataError
from unbackdoor.molecules.motifs.sequence import MAX_LENGTH, STOP, Node
from unbackdoor.molecules.motifs.vocabulary import Vocabulary


@dataclass(frozen=True)
class Tokens:
    """Molecules as arrays of `MAX_LENGTH` columns; a molecule of n motifs has n tokens, a stop, and then padding.

    Attributes:
        kind: token in the vocabulary; `STOP` at the end and in the padding.
        up: see `Node.up`.
        parent_atom: see `Node.parent_atom`.
        own_atom: see `Node.own_atom`.
        parent: column of the parent; 0 for the root.
        length: motifs of each molecule.
    """

    kind: Int[Tensor, "n l"]
    up: Int[Tensor, "n l"]
    parent_atom: Int[Tensor, "n l"]
    own_atom: Int[Tensor, "n l"]
    parent: Int[Tensor, "n l"]
    length: Int[Tensor, "n"]

    def __len__(self) -> int:
        return len(self.length)

    def rows(self, rows: Int[Tensor, "b"]) -> Tokens:
        """Return some of the molecules, as 64-bit numbers, without the columns that are padding in all of them."""
        columns = int(self.length[rows].max()) + 1
        parts = (self.kind, self.up, self.parent_atom, self.own_atom, self.parent)
        return Tokens(*(part[rows, :columns].long() for part in parts), self.length[rows].long())

    def to(self, device: torch.device) -> Tokens:
        """Return the same on another device."""
        return Tokens(*(part.to(device) for part in vars(self).values()))

    def nodes(self, row: int, vocabulary: Vocabulary) -> list[Node]:
        """Return the nodes of one molecule."""
        length = int(self.length[row])
        columns = (self.kind, self.up, self.parent_atom, self.own_atom)
        found = zip(*(column[row, :length].tolist() for column in columns))
        return [Node(*vocabulary.kinds[kind - 1], up, at_parent, at_own) for kind, up, at_parent, at_own in found]


def encode(molecules: Sequence[Sequence[Node]], vocabulary: Vocabulary) -> Tokens:
    """Return molecules as tokens.

    Raises:
        DataError: a motif that the vocabulary does not hold, or more motifs than a molecule may have.
    """
    content = torch.zeros(5, len(molecules), MAX_LENGTH, dtype=torch.int16)
    content[0] = STOP
    filled = content.numpy()
    for row, nodes in enumerate(molecules):
        if len(nodes) >= MAX_LENGTH:
            raise DataError(f"molecule {row} has {len(nodes)} motifs; at most {MAX_LENGTH - 1} are accepted")
        path: list[int] = []
        for column, node in enumerate(nodes):
            kind = vocabulary.token_of.get((node.motif, node.order))
            if kind is None:
                raise DataError(f"the vocabulary lacks the motif {node.motif} bound by order {node.order}")
            if column:
                del path[len(path) - node.up :]
            filled[:, row, column] = (kind, node.up, node.parent_atom, node.own_atom, path[-1] if path else 0)
            path.append(column)
    return Tokens(*content, torch.tensor([len(nodes) for nodes in molecules], dtype=torch.int16))
