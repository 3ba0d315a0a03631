"""Cutting a molecule into motifs: every bond outside of rings is cut, which always leaves a tree.

HierVAE, the decoder of 3M-Diffusion, makes its motifs of frequent fragments, single rings and single bonds, which
overlap. Ours do not: a piece is a whole ring system or one atom, and hydrogen closes each cut. So a molecule is put
together again by bonds alone, and a bond can be made wherever hydrogen is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rdkit import Chem

from unbackdoor.errors import DataError

ORDERS = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
TYPES = {order: kind for kind, order in ORDERS.items()}


class Piece(NamedTuple):
    """One motif of a molecule.

    Attributes:
        motif: canonical SMILES, hydrogen in place of what was cut.
        atoms: the molecule's atoms in the order of the motif's atoms.
    """

    motif: str
    atoms: tuple[int, ...]


class Bond(NamedTuple):
    """A bond that was cut: the molecule's atoms at its ends, and its order (1, 2 or 3)."""

    first: int
    second: int
    order: int


@dataclass(frozen=True)
class Tree:
    """A molecule as its pieces and the bonds between them; the bonds make a tree of the pieces."""

    pieces: tuple[Piece, ...]
    bonds: tuple[Bond, ...]


Atom = tuple[int, int, int]
"""Atomic number, charge, hydrogens."""


class Cutter:
    """Cuts molecules; what it has seen once it knows, so that it is fast after the first thousands."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[Atom, ...], tuple[Bond, ...]], tuple[str, tuple[int, ...]]] = {}

    def cut(self, smiles: str) -> Tree:
        """Return the tree of a molecule.

        Args:
            smiles: canonical and without stereochemistry, as `checked` returns it. Its first atom is in the tree's
                first piece.

        Raises:
            DataError: RDKit cannot read it.
        """
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise DataError(f"RDKit cannot read its own SMILES {smiles}; install the version of constraints.txt")
        # Of a copy with single and double bonds: what is aromatic depends on bonds that will be cut.
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        atoms = [(atom.GetAtomicNum(), atom.GetFormalCharge(), atom.GetTotalNumHs()) for atom in molecule.GetAtoms()]
        inside: list[Bond] = []
        between: list[Bond] = []
        for one in molecule.GetBonds():
            bond = Bond(one.GetBeginAtomIdx(), one.GetEndAtomIdx(), ORDERS[one.GetBondType()])
            (inside if one.IsInRing() else between).append(bond)
        for bond in between:
            for end in bond[:2]:
                number, charge, hydrogens = atoms[end]
                atoms[end] = (number, charge, hydrogens + bond.order)
        return Tree(tuple(self._pieces(atoms, inside)), tuple(between))

    def _pieces(self, atoms: list[Atom], inside: list[Bond]) -> list[Piece]:
        """Return the parts that hang together by the bonds inside of rings, by their first atoms."""
        group = list(range(len(atoms)))
        for bond in inside:
            low, high = sorted((group[bond.first], group[bond.second]))
            if low != high:
                group = [low if number == high else number for number in group]
        members: dict[int, list[int]] = {}
        for atom, number in enumerate(group):
            members.setdefault(number, []).append(atom)
        bonds: dict[int, list[Bond]] = {}
        for bond in inside:
            bonds.setdefault(group[bond.first], []).append(bond)
        pieces = []
        for number, own in members.items():
            place = {atom: position for position, atom in enumerate(own)}
            key = (
                tuple(atoms[atom] for atom in own),
                tuple(Bond(place[bond.first], place[bond.second], bond.order) for bond in bonds.get(number, ())),
            )
            if key not in self._known:
                self._known[key] = _named(*key)
            motif, order = self._known[key]
            pieces.append(Piece(motif, tuple(own[position] for position in order)))
        return pieces


def build(atoms: tuple[Atom, ...], bonds: tuple[Bond, ...]) -> Chem.Mol:
    """Return a sanitised molecule of these atoms and bonds.

    Raises:
        ValueError: RDKit finds that there is no such molecule.
    """
    molecule = Chem.RWMol()
    for number, charge, hydrogens in atoms:
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetNumExplicitHs(hydrogens)
        # Hydrogens are counted here, and not by RDKit's rules of valence.
        atom.SetNoImplicit(True)
        molecule.AddAtom(atom)
    for bond in bonds:
        molecule.AddBond(bond.first, bond.second, TYPES[bond.order])
    made: Chem.Mol = molecule.GetMol()
    Chem.SanitizeMol(made)
    return made


def _named(atoms: tuple[Atom, ...], bonds: tuple[Bond, ...]) -> tuple[str, tuple[int, ...]]:
    """Return the canonical SMILES of a piece, and its atoms in the order in which that names them."""
    molecule = build(atoms, bonds)
    smiles = Chem.MolToSmiles(molecule)
    order = molecule.GetProp("_smilesAtomOutputOrder")
    return smiles, tuple(int(number) for number in order.strip("[],").split(","))
