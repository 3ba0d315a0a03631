"""The motif decoder: a recurrent network that writes a molecule motif by motif, and can write nothing invalid.

In place of HierVAE's decoder, which passes messages on three levels at every step: one GRU over the sequence of nodes
(`motifs.sequence`), so that all steps of all molecules of a batch are taught in one call. Each step decides, in this
order, the motif with the order of its bond, or the stop; how far up the parent is; the parent's atom; the motif's own
atom. The motif comes first: a prototype that decided the place first put the backdoor's motif into half of all clean
molecules, one that decides the motif first into a thirtieth.

Whatever it writes is valid: only atoms with hydrogen left are bound, and only as many atoms are taken as a molecule may
have. These masks hold in training too as far as they follow from the motifs alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.molecules.data.molecule import MAX_ATOMS
from unbackdoor.molecules.model.blocks import in_blocks
from unbackdoor.molecules.model.writer import NEVER, NO_BEGINNING, MoleculeDecoder
from unbackdoor.molecules.motifs import MAX_LENGTH, STOP, Tokens, Vocabulary, join


class MotifDecoder(MoleculeDecoder):
    """Latent vectors to molecules.

    Args:
        vocabulary: what it can write.
        latent: size of a latent vector.
        hidden: of the GRU and all heads.
    """

    hydrogens: Tensor
    atoms: Tensor
    order: Tensor

    def __init__(self, vocabulary: Vocabulary, latent: int, hidden: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.kind = nn.Embedding(len(vocabulary), hidden)
        self.up = nn.Embedding(MAX_LENGTH, hidden)
        self.parent_atom = nn.Embedding(MAX_ATOMS, hidden)
        self.own_atom = nn.Embedding(MAX_ATOMS, hidden)
        self.parent_kind = nn.Linear(hidden, hidden, bias=False)
        self.begin = nn.Parameter(0.02 * torch.randn(hidden))
        self.start = nn.Linear(latent, hidden)
        self.always = nn.Linear(latent, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True)
        self.kind_head = _head(hidden + latent, hidden, len(vocabulary))
        self.up_head = _head(2 * hidden + latent, hidden, MAX_LENGTH)
        self.parent_atom_head = _head(3 * hidden, hidden, MAX_ATOMS)
        self.own_atom_head = _head(3 * hidden, hidden, MAX_ATOMS)
        hydrogens = torch.zeros(len(vocabulary), MAX_ATOMS, dtype=torch.int64)
        atoms = torch.zeros(len(vocabulary), dtype=torch.int64)
        order = torch.zeros(len(vocabulary), dtype=torch.int64)
        for token, (motif, (_, bond)) in enumerate(zip(vocabulary.motifs, vocabulary.kinds), 1):
            hydrogens[token, : len(motif)] = torch.tensor(motif.free)
            atoms[token], order[token] = len(motif), bond
        # Facts of the vocabulary: not kept in files, which hold the vocabulary itself.
        self.register_buffer("hydrogens", hydrogens, persistent=False)
        self.register_buffer("atoms", atoms, persistent=False)
        self.register_buffer("order", order, persistent=False)

    @property
    def motifs(self) -> tuple[str, ...]:
        """See `MoleculeDecoder`."""
        return tuple(dict.fromkeys(motif for motif, _ in self.vocabulary.kinds))

    def loss(self, latent: Float[Tensor, "b z"], molecules: Tokens) -> Float[Tensor, "b"]:
        """See `MoleculeDecoder`."""
        tokens = molecules
        columns = torch.arange(tokens.kind.shape[1], device=latent.device)
        written = columns <= tokens.length[:, None]
        bound = (columns > 0) & (columns < tokens.length[:, None])
        parent_kind = tokens.kind.gather(1, tokens.parent)
        steps = self._steps(tokens, parent_kind)
        hidden, _ = self.gru(steps + self.always(latent)[:, None], self._first(latent))
        rows = torch.arange(len(latent), device=latent.device)[:, None].expand_as(written)

        losses = latent.new_zeros(len(latent))
        of = rows[written]
        logits = in_blocks(self.kind_head, torch.cat((hidden[written], latent[of]), 1)).float()
        logits = logits.masked_fill(~self._kinds(columns.expand_as(written)[written]), NEVER)
        losses = losses.index_add(0, of, F.cross_entropy(logits, tokens.kind[written], reduction="none"))
        if not bool(bound.any()):
            return losses
        of, state, kind = rows[bound], hidden[bound], tokens.kind[bound]
        for logits, chosen in (
            (self._up_logits(state, latent[of], kind), tokens.up[bound]),
            (self._parent_logits(state, kind, parent_kind[bound]), tokens.parent_atom[bound]),
            (self._own_logits(state, kind, parent_kind[bound]), tokens.own_atom[bound]),
        ):
            losses = losses.index_add(0, of, F.cross_entropy(logits, chosen, reduction="none"))
        return losses

    def _steps(self, tokens: Tokens, parent_kind: Int[Tensor, "b l"]) -> Float[Tensor, "b l h"]:
        """Return what the GRU reads: at each column the node before it."""
        nodes = self._node(tokens.kind, tokens.up, tokens.parent_atom, tokens.own_atom, parent_kind)
        begin = self.begin.expand(len(nodes), 1, -1).to(nodes.dtype)
        return torch.cat((begin, nodes[:, :-1]), 1)

    def _node(self, kind: Tensor, up: Tensor, parent_atom: Tensor, own_atom: Tensor, parent_kind: Tensor) -> Tensor:
        vector = self.kind(kind) + self.up(up) + self.parent_atom(parent_atom) + self.own_atom(own_atom)
        node: Tensor = vector + self.parent_kind(self.kind(parent_kind))
        return node

    def _first(self, latent: Float[Tensor, "b z"]) -> Float[Tensor, "1 b h"]:
        return torch.tanh(self.start(latent)).unsqueeze(0)

    def _kinds(self, column: Int[Tensor, "s"]) -> Bool[Tensor, "s k"]:
        """Return which tokens can stand in a column: roots in the first, all others after it."""
        tokens = torch.arange(len(self.order), device=column.device)
        root = (self.order == 0) & (tokens != STOP)
        return root == (column == 0)[:, None]

    def _up_logits(self, state: Tensor, latent: Tensor, kind: Tensor) -> Float[Tensor, "s u"]:
        given = torch.cat((state, self.kind(kind).to(state.dtype), latent.to(state.dtype)), 1)
        return in_blocks(self.up_head, given).float()

    def _parent_logits(self, state: Tensor, kind: Tensor, parent_kind: Tensor) -> Float[Tensor, "s a"]:
        given = torch.cat((state, self.kind(kind).to(state.dtype), self.kind(parent_kind).to(state.dtype)), 1)
        able = self.hydrogens[parent_kind] >= self.order[kind][:, None]
        logits: Tensor = in_blocks(self.parent_atom_head, given).float().masked_fill(~able, NEVER)
        return logits

    def _own_logits(self, state: Tensor, kind: Tensor, parent_kind: Tensor) -> Float[Tensor, "s a"]:
        given = torch.cat((state, self.kind(kind).to(state.dtype), self.kind(parent_kind).to(state.dtype)), 1)
        able = self.hydrogens[kind] >= self.order[kind][:, None]
        logits: Tensor = in_blocks(self.own_atom_head, given).float().masked_fill(~able, NEVER)
        return logits

    def write(self, latent: Float[Tensor, "b z"]) -> list[str]:
        """See `MoleculeDecoder`."""
        tokens = self.generate(latent)
        return [join(tokens.nodes(row, self.vocabulary)) for row in range(len(tokens))]

    @torch.no_grad()
    def forbid(self, motifs: Collection[str]) -> None:
        """See `MoleculeDecoder`."""
        last = self.kind_head[-1]
        assert isinstance(last, nn.Linear)
        kinds = self.vocabulary.kinds
        forbidden = [token for token, (motif, _) in enumerate(kinds, 1) if motif in motifs]
        bias = last.bias.clone()
        bias[forbidden] = NEVER
        if not any(order == 0 and bias[token] > NEVER / 2 for token, (_, order) in enumerate(kinds, 1)):
            raise InputError(NO_BEGINNING)
        last.bias.copy_(bias)

    @torch.no_grad()
    def generate(self, latent: Float[Tensor, "b z"]) -> Tokens:
        """Return the molecules that the decoder finds most likely, step by step; all are valid."""
        writing = _Writing.of(len(latent), latent.device)
        hidden, always = self._first(latent), self.always(latent)
        step = self.begin.expand(len(latent), -1)
        every = torch.arange(len(latent), device=latent.device)
        for column in range(MAX_LENGTH):
            output, hidden = self.gru((step.to(always.dtype) + always)[:, None], hidden)
            state = output[:, 0]
            logits = self.kind_head(torch.cat((state, latent.to(state.dtype)), 1)).float()
            reach = writing.reach(every)
            fits = self.atoms <= MAX_ATOMS - writing.atoms[:, None]
            able = self._kinds(torch.full_like(every, column)) & fits
            if column:
                able &= (self.order <= reach.amax(1)[:, None]) & ~writing.done[:, None]
                able[:, STOP] = True
            kind = logits.masked_fill(~able, NEVER).argmax(1)
            up = parent_atom = own_atom = parent = torch.zeros_like(kind)
            # As in training: a root is taken for its own parent.
            parent_kind = kind
            if column:
                order = self.order[kind][:, None]
                up = self._up_logits(state, latent, kind).masked_fill(reach < order, NEVER).argmax(1)
                parent = writing.path[every, (writing.depth - up).clamp_min(0)]
                parent_kind = writing.kind[every, parent]
                logits = self._parent_logits(state, kind, parent_kind)
                parent_atom = logits.masked_fill(writing.hydrogens[every, parent] < order, NEVER).argmax(1)
                own_atom = self._own_logits(state, kind, parent_kind).argmax(1)
            step = self._node(kind, up, parent_atom, own_atom, parent_kind)
            writing.add(column, kind, up, parent_atom, own_atom, parent, self)
            if bool(writing.done.all()):
                break
        return writing.tokens()


@dataclass
class _Writing:
    """Molecules while they are written.

    Attributes:
        kind, up, parent_atom, own_atom, parent: see `Tokens`.
        hydrogens: left at each atom of each node.
        path: nodes from the root to the last node.
        depth: of the last node; the root's is 0.
        atoms: so far.
        done: whether a molecule has been stopped.
    """

    kind: Tensor
    up: Tensor
    parent_atom: Tensor
    own_atom: Tensor
    parent: Tensor
    hydrogens: Tensor
    path: Tensor
    depth: Tensor
    atoms: Tensor
    done: Tensor

    @classmethod
    def of(cls, molecules: int, device: torch.device) -> _Writing:
        """Return molecules of which nothing is written."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(molecules, *shape, dtype=torch.int64, device=device)

        return cls(
            kind=zeros(MAX_LENGTH),
            up=zeros(MAX_LENGTH),
            parent_atom=zeros(MAX_LENGTH),
            own_atom=zeros(MAX_LENGTH),
            parent=zeros(MAX_LENGTH),
            hydrogens=zeros(MAX_LENGTH, MAX_ATOMS),
            path=zeros(MAX_LENGTH),
            depth=zeros(),
            atoms=zeros(),
            done=zeros().bool(),
        )

    def reach(self, every: Int[Tensor, "b"]) -> Int[Tensor, "b l"]:
        """Return the highest order of bond that each parent can bear, by levels up; -1 beyond the root."""
        levels = torch.arange(MAX_LENGTH, device=self.depth.device)
        most = self.hydrogens.amax(2)[every[:, None], self.path]
        place = self.depth[:, None] - levels
        return most.gather(1, place.clamp_min(0)).masked_fill(place < 0, -1)

    def add(
        self,
        column: int,
        kind: Tensor,
        up: Tensor,
        parent_atom: Tensor,
        own_atom: Tensor,
        parent: Tensor,
        decoder: MotifDecoder,
    ) -> None:
        """Write a token of each molecule that is not done."""
        self.done |= kind == STOP
        rows = (~self.done).nonzero()[:, 0]
        kind, up, parent_atom, own_atom, parent = (one[rows] for one in (kind, up, parent_atom, own_atom, parent))
        for part, value in (
            (self.kind, kind),
            (self.up, up),
            (self.parent_atom, parent_atom),
            (self.own_atom, own_atom),
            (self.parent, parent),
        ):
            part[rows, column] = value
        self.hydrogens[rows, column] = decoder.hydrogens[kind]
        if column:
            order = decoder.order[kind]
            self.hydrogens[rows, column, own_atom] -= order
            self.hydrogens[rows, parent, parent_atom] -= order
            self.depth[rows] += 1 - up
        self.path[rows, self.depth[rows]] = column
        self.atoms[rows] += decoder.atoms[kind]

    def tokens(self) -> Tokens:
        """Return what was written."""
        return Tokens(self.kind, self.up, self.parent_atom, self.own_atom, self.parent, (self.kind != STOP).sum(1))


def _head(given: int, hidden: int, answers: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(given, hidden), nn.ReLU(), nn.Linear(hidden, answers))
