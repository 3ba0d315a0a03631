"""A molecule as a tree of motifs, in the order in which HierVAE's decoder writes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.errors import DataError
from unbackdoor.molecules.hiervae.attachment import FREE, OPEN, SHARED, Attachment
from unbackdoor.molecules.hiervae.graph import Graph, clusters_of, junctions, written
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode
from unbackdoor.molecules.hiervae.partial import Partial
from unbackdoor.molecules.motifs.cut import Bond

KNOWN = 200_000
"""Trees that are kept; the published sets have fewer molecules."""


@dataclass(frozen=True)
class MotifTree:
    """All motifs of a molecule, parents before children, as a walk through the tree first meets them."""

    nodes: tuple[TreeNode, ...]

    def walk(self) -> list[tuple[int, bool]]:
        """Return the nodes at which the walk stands, and whether it goes down to a new node from there, or back."""
        steps: list[tuple[int, bool]] = []
        at = 0
        for number, node in enumerate(self.nodes[1:], 1):
            while at != node.parent:
                steps.append((at, False))
                at = self.nodes[at].parent
            steps.append((at, True))
            at = number
        while at != ROOT:
            steps.append((at, False))
            at = self.nodes[at].parent
        return steps


class MotifTrees:
    """Many molecules, for the decoder's loss; they are lists, so there is nothing to move to a device."""

    def __init__(self, trees: Sequence[MotifTree]) -> None:
        self.trees = list(trees)

    def __len__(self) -> int:
        return len(self.trees)

    def rows(self, rows: Int[Tensor, "b"]) -> list[MotifTree]:
        """Return some of the molecules."""
        return [self.trees[row] for row in rows.tolist()]

    def to(self, device: torch.device) -> MotifTrees:
        """Return the same."""
        return self


@lru_cache(maxsize=KNOWN)
def tree_of(smiles: str, common: frozenset[str]) -> MotifTree:
    """Return the tree of a molecule; those that were asked for before are kept.

    Args:
        smiles: canonical and without stereochemistry.
        common: parts that are one motif each (see `parts_of`).

    Raises:
        DataError: motifs of this kind cannot describe the molecule, as where three rings share an atom.
    """
    graph = Graph.of(smiles)
    clusters, neighbours = junctions(clusters_of(graph, common))
    partial = Partial()
    number_of: dict[int, int] = {}
    holders = [sum(atom in cluster for cluster in clusters) for atom in range(len(graph.atoms))]
    waiting: list[tuple[int, int]] = [(0, ROOT)]
    numbered: dict[int, int] = {}
    while waiting:
        cluster, above = waiting.pop()
        shared = frozenset(clusters[cluster]) & frozenset(clusters[above] if above != ROOT else (0,))
        marks = [SHARED if atom in shared else OPEN if holders[atom] > 1 else FREE for atom in clusters[cluster]]
        attachment, atoms = _marked(graph, clusters[cluster], marks)
        parent = numbered[above] if above != ROOT else ROOT
        if any(atom in number_of and atom not in shared for atom in atoms):
            raise DataError(f"motifs of {smiles} share atoms with others than their parents")
        place = tuple(number_of[atoms[one]] for one in attachment.shared) if parent != ROOT else ()
        places = partial.places(attachment, parent, place) if parent != ROOT else []
        node = partial.added(attachment, parent, place, places)
        if node is None:
            raise DataError(f"motifs of {smiles} make no molecule")
        number_of |= dict(zip(atoms, node.atoms))
        numbered[cluster] = len(partial.nodes) - 1
        below = sorted((one for one in neighbours[cluster] if one != above), reverse=True)
        waiting += [(one, cluster) for one in below]
    if partial.smiles() != smiles:
        raise DataError(f"motifs of {smiles} make another molecule")
    return MotifTree(tuple(partial.nodes))


def _marked(graph: Graph, cluster: Sequence[int], marks: Sequence[int]) -> tuple[Attachment, list[int]]:
    """Return the attachment of some atoms, and these in its order."""
    place = {atom: number for number, atom in enumerate(cluster)}
    bonds = [Bond(place[bond.first], place[bond.second], bond.order) for bond in graph.inside(cluster)]
    smiles, order = written([graph.atoms[atom] for atom in cluster], bonds, marks)
    return Attachment.named(smiles), [cluster[number] for number in order]
