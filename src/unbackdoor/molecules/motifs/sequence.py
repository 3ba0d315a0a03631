"""A molecule as a sequence of nodes: its motifs in depth-first order, each with the bond to its parent."""

from __future__ import annotations

from typing import NamedTuple

from unbackdoor.molecules.data.molecule import MAX_ATOMS
from unbackdoor.molecules.motifs.cut import Tree
from unbackdoor.molecules.motifs.motif import Motif

MAX_LENGTH = MAX_ATOMS + 1
"""Tokens of a molecule: a node an atom at most, and the stop."""

STOP = 0
"""The class of the token that ends a molecule."""


class Node(NamedTuple):
    """One motif and how it is bound.

    Attributes:
        motif: canonical SMILES.
        order: of the bond to the parent, 1 to 3; 0 for the root.
        up: how many levels above the node before it the parent is; 0: the node before is the parent.
        parent_atom: atom of the parent's motif that is bound; 0 for the root.
        own_atom: atom of this motif that is bound; 0 for the root.
    """

    motif: str
    order: int
    up: int
    parent_atom: int
    own_atom: int


def sequence_of(tree: Tree) -> list[Node]:
    """Return the nodes of a molecule, the root first.

    The root holds the first atom, and children come in the order of their first atoms, so equal molecules have equal
    sequences if their SMILES are canonical. Where a motif is symmetric, the numbers of its atoms are those that make
    the list of bound atoms smallest: a first substituent of benzene is always at the same atom.
    """
    owner = {atom: number for number, piece in enumerate(tree.pieces) for atom in piece.atoms}
    neighbours: list[list[tuple[int, int, int, int]]] = [[] for _ in tree.pieces]
    for first, second, order in tree.bonds:
        neighbours[owner[first]].append((owner[second], first, second, order))
        neighbours[owner[second]].append((owner[first], second, first, order))
    nodes: list[Node] = []
    numbered: dict[int, dict[int, int]] = {}
    waiting = [(0, -1, 0, 0, 0, 0)]
    before = 0
    while waiting:
        number, parent, parent_atom, own_atom, order, depth = waiting.pop()
        piece = tree.pieces[number]
        # Pieces are numbered by their first atoms.
        children = sorted(one for one in neighbours[number] if one[0] != parent)
        bound = [*([own_atom] if parent >= 0 else []), *(child[1] for child in children)]
        places = numbered[number] = _numbers(piece.atoms, Motif.named(piece.motif).symmetries, bound)
        at_parent = numbered[parent][parent_atom] if parent >= 0 else 0
        at_own = places[own_atom] if parent >= 0 else 0
        nodes.append(Node(piece.motif, order, before + 1 - depth if parent >= 0 else 0, at_parent, at_own))
        before = depth
        waiting += [
            (child, number, mine, theirs, bond_order, depth + 1)
            for child, mine, theirs, bond_order in reversed(children)
        ]
    return nodes


def _numbers(atoms: tuple[int, ...], symmetries: tuple[tuple[int, ...], ...], bound: list[int]) -> dict[int, int]:
    """Return the number in the motif of each of the molecule's atoms that is bound."""
    places = {atom: place for place, atom in enumerate(atoms)}
    wanted = [places[atom] for atom in bound]
    if len(symmetries) > 1 and bound:
        best = min(tuple(symmetry[place] for place in wanted) for symmetry in symmetries)
        return dict(zip(bound, best))
    return dict(zip(bound, wanted))
