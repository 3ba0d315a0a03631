"""What HierVAE's network knows of molecules while they grow: messages along bonds and along edges of the tree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.molecules.hiervae.graph import Label
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode

POSITIONS = 30
"""Positions of children that are told apart."""


class SumLSTM(nn.Module):
    """A message from what its source is and from the messages that arrive there.

    As in an LSTM, with the sum of the arriving messages in place of the state before; each of them is forgotten by a
    gate of its own.
    """

    def __init__(self, given: int, hidden: int) -> None:
        super().__init__()
        self.of_given = nn.Linear(given, 4 * hidden)
        self.of_sum = nn.Linear(hidden, 3 * hidden, bias=False)
        self.of_each = nn.Linear(hidden, hidden, bias=False)

    def forward(
        self,
        given: Float[Tensor, "m g"],
        hidden: Float[Tensor, "k h"],
        cell: Float[Tensor, "k h"],
        of: Int[Tensor, "k"],
    ) -> tuple[Float[Tensor, "m h"], Float[Tensor, "m h"]]:
        """Return hidden and cell state of new messages.

        Args:
            given: what the source of each is.
            hidden: of the messages that arrive.
            cell: of the same.
            of: the new message at whose source each arrives.
        """
        width = hidden.shape[1]
        gates = self.of_given(given).float()
        total = hidden.new_zeros(len(given), width).index_add(0, of, hidden)
        into, out, new = (gates[:, : 3 * width] + self.of_sum(total).float()).chunk(3, 1)
        kept = torch.sigmoid(gates[of, 3 * width :] + self.of_each(hidden).float())
        fresh = torch.sigmoid(into) * torch.tanh(new)
        state = fresh.index_add(0, of, kept * cell)
        return torch.sigmoid(out) * torch.tanh(state), state


class Board:
    """The messages of one level for all molecules of a batch; each is written once.

    Args:
        molecules: in the batch.
        each: messages that a molecule may have.
        hidden: size of a message.
        device: where.
    """

    def __init__(self, molecules: int, each: int, hidden: int, device: torch.device) -> None:
        self.each = each
        self.hidden = torch.zeros(molecules * each, hidden, device=device)
        self.cell = torch.zeros_like(self.hidden)

    def write(self, places: Int[Tensor, "m"], hidden: Float[Tensor, "m h"], cell: Float[Tensor, "m h"]) -> None:
        """Keep new messages."""
        self.hidden.index_copy_(0, places, hidden)
        self.cell.index_copy_(0, places, cell)


class Growth:
    """One molecule as far as it has been written, and who sends messages to whom.

    The message down to node n has number 2n in the tree, that up from it 2n + 1; of bond b, the message from its first
    atom to its second has number 2b, the other one 2b + 1.
    """

    def __init__(self) -> None:
        self.nodes: list[TreeNode] = []
        self.children: list[list[int]] = []
        self.atoms: list[Label] = []
        self.arriving: list[list[int]] = []
        """Messages along bonds to each atom."""
        self.sources: list[int] = []
        self.orders: list[int] = []
        self.positions: list[int] = []

    def add(self, node: TreeNode) -> range:
        """Take a new node and return the numbers of the messages along its bonds."""
        if node.parent != ROOT:
            self.children[node.parent].append(len(self.nodes))
        self.nodes.append(node)
        self.children.append([])
        first_atom, first = len(self.atoms), len(self.sources)
        self.atoms += node.new_atoms
        self.arriving += [[] for _ in node.new_atoms]
        for one, other, order in node.new_bonds:
            for source, target in ((one, other), (other, one)):
                self.arriving[target].append(len(self.sources))
                self.sources.append(source)
                self.orders.append(order)
                # As published: what a child tells its parent says which child it is.
                up = source >= first_atom > target
                self.positions.append(min(node.position, POSITIONS - 1) if up else 0)
        return range(first, len(self.sources))

    def at(self, node: int) -> list[int]:
        """Return the messages in the tree that have arrived at a node: from its parent, and from its children."""
        return [2 * node, *(2 * child + 1 for child in self.children[node])]


def flat(parts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return the numbers of all parts behind one another, and the part of each."""
    return [number for part in parts for number in part], [row for row, part in enumerate(parts) for _ in part]
