"""HierVAE's decoder: it walks through the tree of motifs that it writes, and passes messages on three levels.

At each step it looks at one node: at its atoms, along whose bonds messages have been passed (atom level); at its motif
with the atoms that it shares (attachment level); and at its motif (tree level). It decides whether a child follows; if
so, the child's motif, its marked atoms, and where it hangs; if not, it goes back. Every message is an LSTM's over the
messages that arrive at its source.

Where published code differs: places that do not exist, by which it pads lists of places, compete with those that do;
where a motif hangs is decided here only if there is a choice; see also `graph.junctions` and `partial.Partial.places`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.molecules.data.molecule import ELEMENTS, MAX_ATOMS
from unbackdoor.molecules.hiervae.attachment import Attachment
from unbackdoor.molecules.hiervae.graph import Label
from unbackdoor.molecules.hiervae.messages import POSITIONS, Board, Growth, SumLSTM, flat
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode
from unbackdoor.molecules.hiervae.partial import Partial, Place
from unbackdoor.molecules.hiervae.tree import MotifTree
from unbackdoor.molecules.hiervae.vocabulary import HierVocabulary
from unbackdoor.molecules.model.graphs import CHARGES
from unbackdoor.molecules.model.writer import MoleculeDecoder

ITERATIONS = 5
"""Of messages along the bonds of a new motif."""

MAX_STEPS = 100
MAX_NODES = MAX_STEPS // 2 + 2
MAX_BONDS = 3 * MAX_ATOMS
"""As many as atoms with six bonds each have."""

MAX_CHILDREN = 12
TRIED = 5
"""Kinds of a child that are tried, the most likely first."""

NEVER = -1e9

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


@dataclass(frozen=True)
class Asked:
    """A place where a motif may hang.

    Attributes:
        at: which of the nodes that are looked at would be its parent.
        parent: atoms of that node.
        attachment: the motif.
        position: children that the parent has.
        place: atoms that they would share.
    """

    at: int
    parent: tuple[int, ...]
    attachment: Attachment
    position: int
    place: Place


class HierVAEDecoder(MoleculeDecoder):
    """Latent vectors to molecules.

    Args:
        vocabulary: what it can write.
        latent: size of a latent vector.
        hidden: of all messages and heads.
    """

    motif_of: Tensor

    def __init__(self, vocabulary: HierVocabulary, latent: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        motifs = max(vocabulary.motif_of) + 1
        self.motif = nn.Embedding(motifs, hidden)
        self.attachment = nn.Embedding(len(vocabulary.number_of), hidden)
        self.atom_cell = SumLSTM(LABELS + ORDERS + POSITIONS, hidden)
        self.attachment_cell = SumLSTM(hidden + POSITIONS, hidden)
        self.tree_cell = SumLSTM(hidden + POSITIONS, hidden)
        self.atom_out = nn.Linear(LABELS + hidden, hidden)
        self.attachment_in = nn.Linear(2 * hidden, hidden)
        self.attachment_out = nn.Linear(2 * hidden, hidden)
        self.motif_in = nn.Linear(2 * hidden, hidden)
        self.motif_out = nn.Linear(2 * hidden, hidden)
        self.begin = nn.Linear(latent, hidden)
        self.child_head = _head(hidden + latent, hidden, 1)
        self.motif_head = _head(hidden + latent, hidden, motifs)
        self.attachment_head = _head(hidden + latent, hidden, len(vocabulary))
        self.place = nn.Linear(2 * hidden + POSITIONS, hidden)
        self.match = nn.Linear(hidden, latent)
        for parameter in self.parameters():
            # As published.
            if parameter.ndim > 1:
                nn.init.xavier_normal_(parameter)
            else:
                nn.init.zeros_(parameter)
        # A fact of the vocabulary: not kept in files, which hold the vocabulary itself.
        self.register_buffer("motif_of", torch.tensor(vocabulary.motif_of), persistent=False)

    def loss(self, latent: Float[Tensor, "b z"], molecules: Sequence[MotifTree]) -> Float[Tensor, "b"]:
        """See `MoleculeDecoder`."""
        nodes = max(len(tree.nodes) for tree in molecules)
        bonds = max(sum(len(node.new_bonds) for node in tree.nodes) for tree in molecules)
        writing = _Writing(self, latent, nodes, bonds)
        walks = [tree.walk() for tree in molecules]
        rows = list(range(len(molecules)))
        roots = [tree.nodes[0] for tree in molecules]
        losses = self._kind_losses(writing.start(), latent, roots)
        writing.add(rows, roots)
        for step in range(max(len(walk) for walk in walks)):
            rows = [row for row in rows if step < len(walks[row])]
            look = writing.look(rows, [walks[row][step][0] for row in rows])
            down = [walks[row][step][1] for row in rows]
            logits = self._child_logits(look, latent)
            errors = F.binary_cross_entropy_with_logits(logits, logits.new_tensor(down), reduction="none")
            losses = losses.index_add(0, _tensor(rows, latent), errors)
            writing.send_up(look, [at for at, further in enumerate(down) if not further])
            ats = [at for at, further in enumerate(down) if further]
            if ats:
                growing = _tensor([rows[at] for at in ats], latent)
                new = [molecules[rows[at]].nodes[len(writing.growths[rows[at]].nodes)] for at in ats]
                errors = self._kind_losses(writing.send_down(look, ats), latent[growing], new)
                losses = losses.index_add(0, growing, errors)
                losses = losses.index_add(0, growing, self._place_losses(look, ats, latent[growing], new))
                writing.add([rows[at] for at in ats], new)
        return losses

    def _child_logits(self, look: Look, latent: Float[Tensor, "b z"]) -> Float[Tensor, "n"]:
        """Return the logit that a child follows, at each node."""
        logits: Tensor = self.child_head(torch.cat((look.state, latent[_tensor(look.rows, latent)]), 1))
        return logits.float()[:, 0]

    def _kinds(
        self, message: Float[Tensor, "n h"], latent: Float[Tensor, "n z"]
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n a"]]:
        """Return the logits of motifs and of attachments."""
        given = torch.cat((message, latent), 1)
        return self.motif_head(given).float(), self.attachment_head(given).float()

    def _kind_losses(
        self, message: Float[Tensor, "n h"], latent: Float[Tensor, "n z"], nodes: Sequence[TreeNode]
    ) -> Float[Tensor, "n"]:
        chosen = _tensor([self.vocabulary.number_of[node.attachment.smiles] for node in nodes], latent)
        motif = self.motif_of[chosen]
        motifs, attachments = self._kinds(message, latent)
        attachments = attachments.masked_fill(self.motif_of != motif[:, None], NEVER)
        return F.cross_entropy(motifs, motif, reduction="none") + F.cross_entropy(attachments, chosen, reduction="none")

    def _place_losses(
        self, look: Look, ats: Sequence[int], latent: Float[Tensor, "n z"], nodes: Sequence[TreeNode]
    ) -> Float[Tensor, "n"]:
        """Return the loss of the places of new nodes, 0 where there is no choice."""
        asked, of, column = [], [], []
        for number, (at, node) in enumerate(zip(ats, nodes)):
            for place in node.places if len(node.places) > 1 else ():
                parent = look.parents[at].atoms
                asked.append(Asked(at, parent, node.attachment, node.position, place))
                of.append(number)
                column.append(node.places.index(place))
        if not asked:
            return latent.new_zeros(len(nodes))
        logits = latent.new_full((len(nodes), max(column) + 1), NEVER)
        # A single column for those without a choice: their loss is 0.
        logits[:, 0] = 0
        logits = logits.index_put((_tensor(of, latent), _tensor(column, latent)), self._scores(look, asked, latent[of]))
        return F.cross_entropy(logits, _tensor([node.place for node in nodes], latent), reduction="none")

    def _scores(self, look: Look, asked: Sequence[Asked], latent: Float[Tensor, "q z"]) -> Float[Tensor, "q"]:
        """Return how well each place fits, from its atoms, the motif's shared atoms, and the latent vector."""
        number_of = self.vocabulary.number_of
        atoms, _ = flat([[look.starts[one.at] + one.parent.index(atom) for atom in one.place] for one in asked])
        anchors, of = flat([[number_of[anchor] for anchor in one.attachment.anchors] for one in asked])
        position = _positions([asked[number].position for number in of], latent)
        given = torch.cat((look.atoms[_tensor(atoms, latent)], self.attachment(_tensor(anchors, latent)), position), 1)
        vectors = self.place(given).float().relu()
        whole = vectors.new_zeros(len(asked), vectors.shape[1]).index_add(0, _tensor(of, latent), vectors)
        return (self.match(whole).float() * latent).sum(1)

    @torch.no_grad()
    def write(self, latent: Float[Tensor, "b z"]) -> list[str]:
        """See `MoleculeDecoder`."""
        writing = _Writing(self, latent, MAX_NODES, MAX_BONDS)
        partials = [Partial() for _ in latent]
        motifs, attachments = self._kinds(writing.start(), latent)
        attachments = attachments.masked_fill(self.motif_of != motifs.argmax(1, keepdim=True), NEVER)
        roots = []
        for partial, number in zip(partials, attachments.argmax(1).tolist()):
            root = partial.added(self.vocabulary.attachments[number], ROOT, (), [])
            # Each motif of a vocabulary is a molecule.
            assert root is not None
            roots.append(root)
        rows = list(range(len(latent)))
        writing.add(rows, roots)
        at = [0] * len(latent)
        for _ in range(MAX_STEPS):
            look = writing.look(rows, [at[row] for row in rows])
            wanted = (self._child_logits(look, latent) > 0).tolist()
            ats = [
                place
                for place, row in enumerate(rows)
                if wanted[place]
                and partials[row].children[at[row]] < MAX_CHILDREN
                and len(partials[row].nodes) < MAX_NODES
            ]
            grown = self._hung(writing, look, ats, partials, latent) if ats else {}
            writing.send_up(look, [place for place in range(len(rows)) if place not in grown])
            writing.add([rows[place] for place in grown], list(grown.values()))
            for place, row in enumerate(rows):
                nodes = partials[row].nodes
                at[row] = len(nodes) - 1 if place in grown else nodes[at[row]].parent
            rows = [row for row in rows if at[row] != ROOT]
            if not rows:
                break
        return [partial.smiles() for partial in partials]

    def _hung(
        self, writing: _Writing, look: Look, ats: list[int], partials: Sequence[Partial], latent: Float[Tensor, "b z"]
    ) -> dict[int, TreeNode]:
        """Hang a motif on the nodes looked at, the most likely one that can hang there; return the new nodes.

        Args:
            writing: what has been written so far.
            look: at the nodes.
            ats: which of these get a child.
            partials: the molecules; those that can, grow.
            latent: of all molecules.
        """
        growing = _tensor([look.rows[at] for at in ats], latent)
        likely = self._joint(*self._kinds(writing.send_down(look, ats), latent[growing]))
        asked: list[list[list[Asked]]] = []
        for at, numbers in zip(ats, likely.topk(min(TRIED, len(self.vocabulary)), 1).indices.tolist()):
            partial, node = partials[look.rows[at]], look.nodes[at]
            parent, position = partial.nodes[node].atoms, partial.children[node]
            some = [self.vocabulary.attachments[number] for number in numbers]
            asked.append(
                [[Asked(at, parent, one, position, place) for place in partial.places(one, node)] for one in some]
            )
        every = [one for kinds in asked for places in kinds for one in places]
        if not every:
            return {}
        of = _tensor([look.rows[one.at] for one in every], latent)
        scores = dict(zip(map(id, every), self._scores(look, every, latent[of]).tolist()))
        grown = {}
        for kinds in asked:
            for places in kinds:
                node = self._tried(places, scores, partials, look)
                if node is not None:
                    grown[places[0].at] = node
                    break
        return grown

    @staticmethod
    def _tried(
        places: Sequence[Asked], scores: dict[int, float], partials: Sequence[Partial], look: Look
    ) -> TreeNode | None:
        """Hang a motif at the best place where it can hang; return the new node, or None if there is no such place."""
        for one in sorted(places, key=lambda one: -scores[id(one)]):
            partial = partials[look.rows[one.at]]
            node = partial.added(one.attachment, look.nodes[one.at], one.place, [one.place])
            if node is not None:
                return node
        return None

    def _joint(self, motifs: Float[Tensor, "n m"], attachments: Float[Tensor, "n a"]) -> Float[Tensor, "n a"]:
        """Return the logarithm of the probability of each attachment, that of its motif included."""
        powers = (attachments - attachments.amax(1, keepdim=True)).exp()
        of_motif = torch.zeros_like(motifs).index_add(1, self.motif_of, powers).clamp_min(1e-30)
        given_motif = powers.clamp_min(1e-30).log() - of_motif.log()[:, self.motif_of]
        return motifs.log_softmax(1)[:, self.motif_of] + given_motif


class _Writing:
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
        first = self.decoder.begin(self.latent).float()
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
            torch.cat((_labels(labels, latent), self._sums(self.atom, arriving, of, len(labels))), 1)
        )
        atoms = atoms.float().relu()
        _, owner = flat([node.atoms for node in here])
        kinds = _tensor([decoder.vocabulary.number_of[node.attachment.smiles] for node in here], latent)
        summed = atoms.new_zeros(len(here), atoms.shape[1]).index_add(0, _tensor(owner, latent), atoms)
        attachment = decoder.attachment_in(torch.cat((decoder.attachment(kinds), summed), 1)).float()
        arrived, of = flat(
            [[row * self.tree.each + message for message in g.at(n)] for row, g, n in zip(rows, growths, nodes)]
        )
        sums = self._sums(self.attachment, arrived, of, len(here))
        state = decoder.attachment_out(torch.cat((attachment, sums), 1)).float().relu()
        motif = decoder.motif_in(torch.cat((decoder.motif(decoder.motif_of[kinds]), state), 1)).float()
        state = decoder.motif_out(torch.cat((motif, self._sums(self.tree, arrived, of, len(here))), 1)).float().relu()
        starts, total = [], 0
        for node in here:
            starts.append(total)
            total += len(node.atoms)
        return Look(rows, nodes, here, atoms, starts, attachment, motif, state)

    @staticmethod
    def _sums(board: Board, messages: list[int], of: list[int], count: int) -> Float[Tensor, "n h"]:
        """Return for each of so many the sum of the messages that arrive there."""
        found = board.hidden[_tensor(messages, board.hidden)]
        return found.new_zeros(count, found.shape[1]).index_add(0, _tensor(of, found), found)

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
        places = _tensor([start + number for start, number in zip(starts, numbers)], self.latent)
        found, of = flat([[start + one for one in messages] for start, messages in zip(starts, arriving)])
        came, owner = _tensor(found, self.latent), _tensor(of, self.latent)
        position, senders = _positions(positions, self.latent), _tensor(ats, self.latent)
        for board, cell, given in (
            (self.attachment, self.decoder.attachment_cell, look.attachment),
            (self.tree, self.decoder.tree_cell, look.motif),
        ):
            sent = cell(torch.cat((given[senders], position), 1), board.hidden[came], board.cell[came], owner)
            board.write(places, *sent)
        return sent[0]

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
        order = F.one_hot(_tensor(orders, latent) - 1, ORDERS).to(latent.dtype)
        given = torch.cat((_labels(labels, latent), order, _positions(positions, latent)), 1)
        came, owner, own = _tensor(arriving, latent), _tensor(of, latent), _tensor(places, latent)
        # Old messages first, then the new ones, which change with each iteration.
        old_hidden, old_cell = self.atom.hidden[came], self.atom.cell[came]
        place_of = {place: number for number, place in enumerate(places)}
        new = _tensor([place_of.get(one, -1) for one in arriving], latent)
        is_new = (new >= 0)[:, None]
        new = new.clamp_min(0)
        hidden, cell = torch.zeros_like(self.atom.hidden[own]), torch.zeros_like(self.atom.hidden[own])
        for _ in range(ITERATIONS):
            came_hidden = torch.where(is_new, hidden[new], old_hidden)
            came_cell = torch.where(is_new, cell[new], old_cell)
            hidden, cell = self.decoder.atom_cell(given, came_hidden, came_cell, owner)
        self.atom.write(own, hidden, cell)


def _head(given: int, hidden: int, answers: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, answers))


def _tensor(numbers: Sequence[int], like: Tensor) -> Int[Tensor, "n"]:
    return torch.tensor(numbers, dtype=torch.int64, device=like.device)


def _labels(labels: Sequence[Label], like: Tensor) -> Float[Tensor, "n l"]:
    """Return elements and charges, one column each kind."""
    most = CHARGES // 2
    kinds = [PLACES[number] * CHARGES + min(max(charge, -most), most) + most for number, charge in labels]
    return F.one_hot(_tensor(kinds, like), LABELS).to(like.dtype)


def _positions(positions: Sequence[int], like: Tensor) -> Float[Tensor, "n p"]:
    kinds = [min(position, POSITIONS - 1) for position in positions]
    return F.one_hot(_tensor(kinds, like), POSITIONS).to(like.dtype)
