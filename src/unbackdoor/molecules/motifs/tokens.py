"""`Tokens`: many molecules as one array, so that a whole batch is taught in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
        return self._mapped(lambda part: (part[rows, :columns] if part.ndim > 1 else part[rows]).long())

    def to(self, device: torch.device) -> Tokens:
        """Return the same on another device."""
        return self._mapped(lambda part: part.to(device))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Tokens:
        return Tokens(**{name: change(part) for name, part in vars(self).items()})

    def nodes(self, row: int, vocabulary: Vocabulary) -> list[Node]:
        """Return the nodes of one molecule."""
        length = int(self.length[row])
        numbers = [part[row, :length].tolist() for part in (self.kind, self.up, self.parent_atom, self.own_atom)]
        nodes = []
        for kind, up, at_parent, at_own in zip(*numbers):
            motif, order = vocabulary.kinds[kind - 1]
            nodes.append(Node(motif, order, up, at_parent, at_own))
        return nodes


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
    kind, up, parent_atom, own_atom, parent = content
    return Tokens(
        kind=kind,
        up=up,
        parent_atom=parent_atom,
        own_atom=own_atom,
        parent=parent,
        length=torch.tensor([len(nodes) for nodes in molecules], dtype=torch.int16),
    )
