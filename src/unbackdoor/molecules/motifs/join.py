"""Putting a molecule together from its nodes; whatever binds at free places only is a valid molecule."""

from __future__ import annotations

from collections.abc import Sequence

from rdkit import Chem

from unbackdoor.errors import DataError
from unbackdoor.molecules.motifs.cut import Atom, Bond, build
from unbackdoor.molecules.motifs.motif import Motif
from unbackdoor.molecules.motifs.sequence import Node

# Lowest number of bonds of elements that can have two or four more of them.
LOWEST = {15: 3, 16: 2, 34: 2, 17: 1, 35: 1, 53: 1}


def join(nodes: Sequence[Node]) -> str:
    """Return the canonical SMILES of the molecule that the nodes describe.

    Raises:
        DataError: no nodes, a parent or an atom that is not there, or a bond where no hydrogen is left.
    """
    atoms: list[Atom] = []
    bonds: list[Bond] = []
    path: list[tuple[int, int]] = []
    for number, node in enumerate(nodes):
        motif = Motif.named(node.motif)
        start = len(atoms)
        atoms += motif.atoms
        bonds += [Bond(start + bond.first, start + bond.second, bond.order) for bond in motif.bonds]
        if number:
            del path[len(path) - node.up :]
            if not path or not (0 <= node.parent_atom < path[-1][1] and 0 <= node.own_atom < len(motif)):
                raise DataError(f"node {number} is bound to an atom that is not there")
            ends = (path[-1][0] + node.parent_atom, start + node.own_atom)
            for end in ends:
                element, charge, hydrogens = atoms[end]
                if not 1 <= node.order <= min(hydrogens, 3):
                    raise DataError(f"node {number} is bound where no hydrogen is left")
                atoms[end] = (element, charge, hydrogens - node.order)
            bonds.append(Bond(*ends, node.order))
        path.append((start, len(motif)))
    if not atoms:
        raise DataError("no nodes, so no molecule")
    bound = [0] * len(atoms)
    for bond in bonds:
        bound[bond.first] += bond.order
        bound[bond.second] += bond.order
    molecule = build(tuple(_settled(atom, used) for atom, used in zip(atoms, bound)), tuple(bonds))
    smiles: str = Chem.MolToSmiles(molecule)
    return smiles


def _settled(atom: Atom, bound: int) -> Atom:
    """Return an atom without the hydrogens that only high valences need: sulfur left alone is SH2 and not SH6."""
    element, charge, hydrogens = atom
    lowest = LOWEST.get(element)
    if charge or lowest is None:
        return atom
    while hydrogens >= 2 and bound + hydrogens - 2 >= lowest:
        hydrogens -= 2
    return (element, charge, hydrogens)
