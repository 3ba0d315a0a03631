"""`Writing`: the messages of a batch of molecules while they are written, and what the network sees at their nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.molecules.data.molecule import ELEMENTS
from unbackdoor.molecules.hiervae.graph import Label
from unbackdoor.molecules.hiervae.messages import POSITIONS, Board, Growth, flat
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode
from unbackdoor.molecules.model.graphs import CHARGES

if TYPE_CHECKING:
    from unbackdoor.molecules.hiervae.decoder import HierVAEDecoder

ITERATIONS = 5
"""Of messages along the bonds of a new motif."""

NUMBERS = {
    "B": 5, "C": 6, "N": 7, "O": 8, "F": 9, "Si": 14, "P": 15, "S": 16, "Cl": 17, "Se": 34, "Br": 35, "I": 53,
}  # fmt: skip
PLACES = {NUMBERS[element]: place for place, element in enumerate(sorted(ELEMENTS))}
LABELS = len(PLACES) * CHARGES
"""Kinds of atoms: element and charge."""

ORDERS = 3
"""Of bonds."""


@dataclass(frozen=True, eq=False)
class Look:
    """What the network sees at one node of each of some molecules.

    Attributes:
        rows: the molecules.
        nodes: the node of each.
        parents: the same nodes, parents of what may come.
        atoms: vectors of the nodes' atoms, those of one node behind those of the other.
        starts: where those of each node begin.
        attachment: of each node, the vector of the attachment level before the messages that arrive there.
        motif: the same of the tree level.
        state: of each node, the vector of the tree level with the messages that arrive there.
    """

    rows: list[int]
    nodes: list[int]
    parents: list[TreeNode]
    atoms: Float[Tensor, "atoms h"]
    starts: list[int]
    attachment: Float[Tensor, "n h"]
    motif: Float[Tensor, "n h"]
    state: Float[Tensor, "n h"]


class Writing:
    """Messages of a batch of molecules while they are written.

    Args:
        decoder: has the weights.
        latent: of the molecules.
        nodes: that a molecule may have.
        bonds: that a molecule may have.
    """

    def __init__(self, decoder: HierVAEDecoder, latent: Float[Tensor, "b z"], nodes: int, bonds: int) -> None:
        hidden = decoder.begin.out_features
        self.decoder = decoder
        self.latent = latent
        self.growths = [Growth() for _ in latent]
        self.atom = Board(len(latent), 2 * bonds, hidden, latent.device)
        self.attachment = Board(len(latent), 2 * nodes, hidden, latent.device)
        self.tree = Board(len(latent), 2 * nodes, hidden, latent.device)

    def start(self) -> Float[Tensor, "b h"]:
        """Send each molecule's latent vector down to its root, in the tree, and return these messages."""
        first: Tensor = self.decoder.begin(self.latent).float()
        self.tree.write(torch.arange(len(first), device=first.device) * self.tree.each, first, torch.zeros_like(first))
        return first

    def look(self, rows: list[int], nodes: list[int]) -> Look:
        """Look at one node of each of some molecules."""
        decoder, latent = self.decoder, self.latent
        growths = [self.growths[row] for row in rows]
        here = [growth.nodes[node] for growth, node in zip(growths, nodes)]
        labels = [growth.atoms[atom] for growth, node in zip(growths, here) for atom in node.atoms]
        arriving, of = flat(
            [
                [row * self.atom.each + message for message in growth.arriving[atom]]
                for row, growth, node in zip(rows, growths, here)
                for atom in node.atoms
            ]
        )
        atoms = decoder.atom_out(
            torch.cat((labels_of(labels, latent), self._sums(self.atom, arriving, of, len(labels))), 1)
        )
        atoms = atoms.float().relu()
        _, owner = flat([node.atoms for node in here])
        kinds = tensor([decoder.vocabulary.number_of[node.attachment.smiles] for node in here], latent)
        summed = atoms.new_zeros(len(here), atoms.shape[1]).index_add(0, tensor(owner, latent), atoms)
        attachment = decoder.attachment_in(torch.cat((decoder.attachment(kinds), summed), 1)).float().relu()
        arrived, of = flat(
            [[row * self.tree.each + message for message in g.at(n)] for row, g, n in zip(rows, growths, nodes)]
        )
        sums = self._sums(self.attachment, arrived, of, len(here))
        state = decoder.attachment_out(torch.cat((attachment, sums), 1)).float().relu()
        motif = decoder.motif_in(torch.cat((decoder.motif(decoder.motif_of[kinds]), state), 1)).float().relu()
        state = decoder.motif_out(torch.cat((motif, self._sums(self.tree, arrived, of, len(here))), 1)).float().relu()
        starts, total = [], 0
        for node in here:
            starts.append(total)
            total += len(node.atoms)
        return Look(rows, nodes, here, atoms, starts, attachment, motif, state)

    @staticmethod
    def _sums(board: Board, messages: list[int], of: list[int], count: int) -> Float[Tensor, "n h"]:
        """Return for each of so many the sum of the messages that arrive there."""
        found = board.hidden[tensor(messages, board.hidden)]
        return found.new_zeros(count, found.shape[1]).index_add(0, tensor(of, found), found)

    def send_down(self, look: Look, ats: list[int]) -> Float[Tensor, "m h"]:
        """Send messages to the next child of some of the nodes looked at, and return those of the tree level."""
        numbers, arriving = [], []
        for at in ats:
            growth = self.growths[look.rows[at]]
            numbers.append(2 * len(growth.nodes))
            arriving.append(growth.at(look.nodes[at]))
        return self._send(look, ats, numbers, arriving, [0] * len(ats))

    def send_up(self, look: Look, ats: list[int]) -> None:
        """Send messages to the parents of some of the nodes looked at; roots have none."""
        ats = [at for at in ats if look.parents[at].parent != ROOT]
        if ats:
            numbers = [2 * look.nodes[at] + 1 for at in ats]
            arriving = [[2 * child + 1 for child in self.growths[look.rows[at]].children[look.nodes[at]]] for at in ats]
            self._send(look, ats, numbers, arriving, [look.parents[at].position for at in ats])

    def _send(
        self, look: Look, ats: list[int], numbers: list[int], arriving: list[list[int]], positions: list[int]
    ) -> Float[Tensor, "m h"]:
        starts = [look.rows[at] * self.tree.each for at in ats]
        places = tensor([start + number for start, number in zip(starts, numbers)], self.latent)
        found, of = flat([[start + one for one in messages] for start, messages in zip(starts, arriving)])
        came, owner = tensor(found, self.latent), tensor(of, self.latent)
        position, senders = positions_of(positions, self.latent), tensor(ats, self.latent)
        message = look.motif
        for board, cell, given in (
            (self.attachment, self.decoder.attachment_cell, look.attachment),
            (self.tree, self.decoder.tree_cell, look.motif),
        ):
            message, state = cell(torch.cat((given[senders], position), 1), board.hidden[came], board.cell[came], owner)
            board.write(places, message, state)
        return message

    def add(self, rows: list[int], nodes: list[TreeNode]) -> None:
        """Take a new node of each of some molecules, and pass messages along its bonds."""
        labels: list[Label] = []
        orders, positions, places, arriving, of = [], [], [], [], []
        for row, node in zip(rows, nodes):
            growth = self.growths[row]
            for message in growth.add(node):
                labels.append(growth.atoms[growth.sources[message]])
                orders.append(growth.orders[message])
                positions.append(growth.positions[message])
                places.append(row * self.atom.each + message)
        # Only now: atoms that were there before have new bonds too.
        number = 0
        for row, node in zip(rows, nodes):
            growth, count = self.growths[row], 2 * len(node.new_bonds)
            for message in range(len(growth.sources) - count, len(growth.sources)):
                before = [one for one in growth.arriving[growth.sources[message]] if one != message ^ 1]
                arriving += [row * self.atom.each + one for one in before]
                of += [number] * len(before)
                number += 1
        if not places:
            return
        latent = self.latent
        order = F.one_hot(tensor(orders, latent) - 1, ORDERS).to(latent.dtype)
        given = torch.cat((labels_of(labels, latent), order, positions_of(positions, latent)), 1)
        came, owner, own = tensor(arriving, latent), tensor(of, latent), tensor(places, latent)
        # Old messages first, then the new ones, which change with each iteration.
        old_hidden, old_cell = self.atom.hidden[came], self.atom.cell[came]
        place_of = {place: number for number, place in enumerate(places)}
        new = tensor([place_of.get(one, -1) for one in arriving], latent)
        is_new = (new >= 0)[:, None]
        new = new.clamp_min(0)
        hidden, cell = torch.zeros_like(self.atom.hidden[own]), torch.zeros_like(self.atom.hidden[own])
        for _ in range(ITERATIONS):
            came_hidden = torch.where(is_new, hidden[new], old_hidden)
            came_cell = torch.where(is_new, cell[new], old_cell)
            hidden, cell = self.decoder.atom_cell(given, came_hidden, came_cell, owner)
        self.atom.write(own, hidden, cell)


def tensor(numbers: Sequence[int], like: Tensor) -> Int[Tensor, "n"]:
    """Return numbers on the device of another tensor."""
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def labels_of(labels: Sequence[Label], like: Tensor) -> Float[Tensor, "n l"]:
    """Return elements and charges, one column each kind."""
    most = CHARGES // 2
    kinds = [PLACES[number] * CHARGES + min(max(charge, -most), most) + most for number, charge in labels]
    return F.one_hot(tensor(kinds, like), LABELS).to(like.dtype)


def positions_of(positions: Sequence[int], like: Tensor) -> Float[Tensor, "n p"]:
    """Return positions of children, one column each."""
    kinds = [min(position, POSITIONS - 1) for position in positions]
    return F.one_hot(tensor(kinds, like), POSITIONS).to(like.dtype)
