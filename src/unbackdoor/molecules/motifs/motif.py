"""`Motif`: what the decoder must know of a ring system or atom to bind to it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rdkit import Chem

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.molecule import learning_fault, parse, published_fault
from unbackdoor.molecules.motifs.cut import ORDERS, Atom, Bond
from unbackdoor.text import clean_text

MAX_SYMMETRIES = 1000
"""Of a motif that are looked at; the most symmetric ring systems that occur, such as cubane, have 48."""


@dataclass(frozen=True)
class Motif:
    """A ring system or a single atom with hydrogen at all free places.

    Attributes:
        smiles: canonical.
        atoms: atomic number, charge and hydrogens of each; a hydrogen is a place for a bond.
        bonds: with single and double bonds, none aromatic.
        symmetries: all ways to map the motif onto itself: the atom that takes the place of each.
    """

    smiles: str
    atoms: tuple[Atom, ...]
    bonds: tuple[Bond, ...]
    symmetries: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.atoms)

    @property
    def free(self) -> tuple[int, ...]:
        """Hydrogens of each atom."""
        return tuple(hydrogens for _, _, hydrogens in self.atoms)

    @staticmethod
    @lru_cache(maxsize=100_000)
    def named(smiles: str) -> Motif:
        """Return the motif of that canonical SMILES.

        Raises:
            DataError: it is no ring system or single atom that a molecule may hold.
        """
        molecule = parse(smiles)
        if molecule is None or published_fault(molecule) or learning_fault(molecule):
            raise DataError(f"{clean_text(smiles, 80)} is no motif; build the vocabulary again")
        if Chem.MolToSmiles(molecule) != smiles:
            raise DataError(
                f"the motif {clean_text(smiles, 80)} is not written canonically; build the vocabulary again"
            )
        if not all(bond.IsInRing() for bond in molecule.GetBonds()):
            raise DataError(f"the motif {clean_text(smiles, 80)} has a bond outside of rings; cut it there")
        atoms = tuple(
            (atom.GetAtomicNum(), atom.GetFormalCharge(), atom.GetTotalNumHs()) for atom in molecule.GetAtoms()
        )
        symmetries = _symmetries(molecule, atoms)
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        bonds = tuple(
            Bond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), ORDERS[bond.GetBondType()])
            for bond in molecule.GetBonds()
        )
        return Motif(smiles, atoms, bonds, symmetries)


def _symmetries(molecule: Chem.Mol, atoms: tuple[Atom, ...]) -> tuple[tuple[int, ...], ...]:
    identity = tuple(range(len(atoms)))
    matches = molecule.GetSubstructMatches(molecule, uniquify=False, maxMatches=MAX_SYMMETRIES)
    # A match compares neither hydrogens nor all charges: the two nitrogens of imidazole would be alike.
    found = {match for match in matches if all(atoms[there] == atoms[here] for here, there in enumerate(match))}
    return tuple(sorted(found | {identity}))
