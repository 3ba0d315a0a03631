"""`Partial`: a molecule while motif after motif is hung on it."""

from __future__ import annotations

from collections.abc import Iterator

from rdkit import Chem

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.molecule import MAX_ATOMS
from unbackdoor.molecules.hiervae.attachment import Attachment
from unbackdoor.molecules.hiervae.graph import Label, molecule_of, sanitised
from unbackdoor.molecules.hiervae.node import ROOT, TreeNode
from unbackdoor.molecules.motifs.cut import Bond

Place = tuple[int, ...]
"""Atoms of the molecule that a motif shares with its parent, in the order of its SMILES."""


class Partial:
    """A molecule of motifs; all of what is there is a molecule that RDKit accepts."""

    def __init__(self) -> None:
        self.atoms: list[Label] = []
        self.bonds: list[Bond] = []
        self.nodes: list[TreeNode] = []
        self.children: list[int] = []

    def places(self, attachment: Attachment, parent: int, taken: Place = ()) -> list[Place]:
        """Return the places where a motif can hang on a node; of those that look alike, one.

        Args:
            attachment: what is to be hung.
            parent: number of the node.
            taken: a place that is among them, in place of the one that looks like it.
        """
        found = list(self._matches(attachment, self.nodes[parent].atoms))
        if len(found) < 2:
            return found
        # Published code compares atoms within parent, its parent and earlier children; here within all that is there.
        molecule = sanitised(self.atoms, self.bonds) or molecule_of(self.atoms, self.bonds)
        rank = list(Chem.CanonicalRankAtoms(molecule, breakTies=False))
        alike: dict[tuple[int, ...], Place] = {}
        for place in found:
            look = tuple(rank[atom] for atom in place)
            if place == taken or look not in alike:
                alike[look] = place
        return list(alike.values())

    def _matches(self, attachment: Attachment, atoms: tuple[int, ...]) -> Iterator[Place]:
        """Yield the places whose atoms and bonds are those of the shared atoms."""
        orders = {frozenset(bond[:2]): bond.order for bond in self.bonds}
        wanted = {frozenset(bond[:2]): bond.order for bond in attachment.bonds}
        shared = attachment.shared

        def further(place: Place) -> Iterator[Place]:
            if len(place) == len(shared):
                yield place
                return
            own = shared[len(place)]
            for atom in atoms:
                if atom in place or self.atoms[atom] != attachment.atoms[own]:
                    continue
                if all(
                    orders.get(frozenset((atom, there))) == wanted.get(frozenset((own, here)))
                    for there, here in zip(place, shared)
                ):
                    yield from further((*place, atom))

        return further(())

    def added(self, attachment: Attachment, parent: int, place: Place, places: list[Place]) -> TreeNode | None:
        """Hang a motif on a node and return the new node, or None if there is no such molecule.

        Args:
            attachment: what is hung; for the root all of its atoms are new.
            parent: number of the node, `ROOT` for the root.
            place: one of `places`, empty for the root.
            places: all that there are.
        """
        own = dict(zip(attachment.shared, place)) if parent != ROOT else {}
        new = [number for number in range(len(attachment)) if number not in own]
        own |= {number: len(self.atoms) + count for count, number in enumerate(new)}
        fresh = frozenset(new)
        bonds = [
            Bond(own[bond.first], own[bond.second], bond.order)
            for bond in attachment.bonds
            if bond.first in fresh or bond.second in fresh
        ]
        atoms = [*self.atoms, *(attachment.atoms[number] for number in new)]
        if len(atoms) > MAX_ATOMS or sanitised(atoms, (*self.bonds, *bonds)) is None:
            return None
        node = TreeNode(
            attachment=attachment,
            parent=parent,
            position=0 if parent == ROOT else self.children[parent],
            atoms=tuple(own[number] for number in range(len(attachment))),
            new_atoms=tuple(atoms[len(self.atoms) :]),
            new_bonds=tuple(bonds),
            places=tuple(places),
            place=places.index(place) if place else 0,
        )
        self.atoms = atoms
        self.bonds += bonds
        self.nodes.append(node)
        self.children.append(0)
        if parent != ROOT:
            self.children[parent] += 1
        return node

    def smiles(self) -> str:
        """Return the canonical SMILES.

        Raises:
            DataError: nothing is there.
        """
        molecule = sanitised(self.atoms, self.bonds) if self.atoms else None
        if molecule is None:
            raise DataError("no motifs, so no molecule")
        # Once more from its SMILES, as all molecules here are written.
        text: str = Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(molecule)))
        return text
