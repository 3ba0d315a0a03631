"""HierVAE's decoder: it walks through the tree of motifs that it writes, and passes messages on three levels.

At each step it looks at one node: at its atoms, along whose bonds messages have been passed (atom level); at its motif
with the atoms that it shares (attachment level); and at its motif (tree level). It decides whether a child follows; if
so, the child's motif, its marked atoms, and where it hangs; if not, it goes back. Every message is an LSTM's over the
messages that arrive at its source.

Where published code differs: places that do not exist, by which it pads lists of places, compete with those that do;
where a motif hangs is decided here only if there is a choice; messages along bonds of a motif that stands already are
not passed anew when a child is joined to it, so of its atoms only the shared ones see the child; see also
`graph.junctions` and `partial.Partial.places`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.molecules.data.molecule import MAX_ATOMS
from unbackdoor.molecules.hiervae.attachment import Attachment
from unbackdoor.molecules.hiervae.messages import POSITIONS, SumLSTM, flat
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode
from unbackdoor.molecules.hiervae.partial import Partial, Place
from unbackdoor.molecules.hiervae.tree import MotifTree
from unbackdoor.molecules.hiervae.vocabulary import HierVocabulary
from unbackdoor.molecules.hiervae.writing import LABELS, ORDERS, Look, Writing, positions_of, tensor
from unbackdoor.molecules.model.writer import NEVER, NO_BEGINNING, MoleculeDecoder

MAX_STEPS = 100
MAX_NODES = MAX_STEPS // 2 + 2
MAX_BONDS = 3 * MAX_ATOMS
"""As many as atoms with six bonds each have."""

MAX_CHILDREN = 12
TRIED = 5
"""Kinds of a child that are tried, the most likely first."""


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

    @property
    def motifs(self) -> tuple[str, ...]:
        """See `MoleculeDecoder`."""
        return tuple(dict.fromkeys(one.motif for one in self.vocabulary.attachments))

    def loss(self, latent: Float[Tensor, "b z"], molecules: Sequence[MotifTree]) -> Float[Tensor, "b"]:
        """See `MoleculeDecoder`."""
        nodes = max(len(tree.nodes) for tree in molecules)
        bonds = max(sum(len(node.new_bonds) for node in tree.nodes) for tree in molecules)
        writing = Writing(self, latent, nodes, bonds)
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
            losses = losses.index_add(0, tensor(rows, latent), errors)
            writing.send_up(look, [at for at, further in enumerate(down) if not further])
            ats = [at for at, further in enumerate(down) if further]
            if ats:
                growing = tensor([rows[at] for at in ats], latent)
                new = [molecules[rows[at]].nodes[len(writing.growths[rows[at]].nodes)] for at in ats]
                errors = self._kind_losses(writing.send_down(look, ats), latent[growing], new)
                losses = losses.index_add(0, growing, errors)
                losses = losses.index_add(0, growing, self._place_losses(look, ats, latent[growing], new))
                writing.add([rows[at] for at in ats], new)
        return losses

    def _child_logits(self, look: Look, latent: Float[Tensor, "b z"]) -> Float[Tensor, "n"]:
        """Return the logit that a child follows, at each node."""
        logits: Tensor = self.child_head(torch.cat((look.state, latent[tensor(look.rows, latent)]), 1))
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
        chosen = tensor([self.vocabulary.number_of[node.attachment.smiles] for node in nodes], latent)
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
        logits = logits.index_put((tensor(of, latent), tensor(column, latent)), self._scores(look, asked, latent[of]))
        return F.cross_entropy(logits, tensor([node.place for node in nodes], latent), reduction="none")

    def _scores(self, look: Look, asked: Sequence[Asked], latent: Float[Tensor, "q z"]) -> Float[Tensor, "q"]:
        """Return how well each place fits, from its atoms, the motif's shared atoms, and the latent vector."""
        number_of = self.vocabulary.number_of
        atoms, _ = flat([[look.starts[one.at] + one.parent.index(atom) for atom in one.place] for one in asked])
        anchors, of = flat([[number_of[anchor] for anchor in one.attachment.anchors] for one in asked])
        position = positions_of([asked[number].position for number in of], latent)
        given = torch.cat((look.atoms[tensor(atoms, latent)], self.attachment(tensor(anchors, latent)), position), 1)
        vectors = self.place(given).float().relu()
        whole = vectors.new_zeros(len(asked), vectors.shape[1]).index_add(0, tensor(of, latent), vectors)
        scores: Tensor = (self.match(whole).float() * latent).sum(1)
        return scores

    @torch.no_grad()
    def forbid(self, motifs: Collection[str]) -> None:
        """See `MoleculeDecoder`. Marked atoms are chosen for a motif that is chosen: to forbid motifs is enough."""
        last = self.motif_head[-1]
        assert isinstance(last, nn.Linear)
        bias = last.bias.clone()
        bias[[number for number, motif in enumerate(self.motifs) if motif in motifs]] = NEVER
        if not bool((bias > NEVER / 2).any()):
            raise InputError(NO_BEGINNING)
        last.bias.copy_(bias)

    @torch.no_grad()
    def write(self, latent: Float[Tensor, "b z"]) -> list[str]:
        """See `MoleculeDecoder`."""
        writing = Writing(self, latent, MAX_NODES, MAX_BONDS)
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
        self, writing: Writing, look: Look, ats: list[int], partials: Sequence[Partial], latent: Float[Tensor, "b z"]
    ) -> dict[int, TreeNode]:
        """Hang a motif on the nodes looked at, the most likely one that can hang there; return the new nodes.

        Args:
            writing: what has been written so far.
            look: at the nodes.
            ats: which of these get a child.
            partials: the molecules; those that can, grow.
            latent: of all molecules.
        """
        growing = tensor([look.rows[at] for at in ats], latent)
        likely = self._joint(*self._kinds(writing.send_down(look, ats), latent[growing]))
        asked: list[list[list[Asked]]] = []
        values, chosen = likely.topk(min(TRIED, len(self.vocabulary)), 1)
        for at, likelihoods, numbers in zip(ats, values.tolist(), chosen.tolist()):
            partial, node = partials[look.rows[at]], look.nodes[at]
            parent, position = partial.nodes[node].atoms, partial.children[node]
            some = [self.vocabulary.attachments[one] for one, each in zip(numbers, likelihoods) if each > NEVER / 2]
            asked.append(
                [[Asked(at, parent, one, position, place) for place in partial.places(one, node)] for one in some]
            )
        every = [one for kinds in asked for places in kinds for one in places]
        if not every:
            return {}
        of = tensor([look.rows[one.at] for one in every], latent)
        scores = dict(zip(map(id, every), self._scores(look, every, latent[of]).tolist()))
        grown: dict[int, TreeNode] = {}
        for kinds in asked:
            for places in kinds:
                new = self._tried(places, scores, partials, look)
                if new is not None:
                    grown[places[0].at] = new
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


def _head(given: int, hidden: int, answers: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, answers))
