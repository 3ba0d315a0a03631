"""`Attachment`: a motif with the atoms by which it hangs on others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

from rdkit import Chem, rdBase

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.molecule import learning_fault, published_fault
from unbackdoor.molecules.hiervae.graph import Label, sanitised, written
from unbackdoor.molecules.motifs.cut import ORDERS, Bond
from unbackdoor.text import clean_text

FREE, SHARED, OPEN = 0, 1, 2
"""Marks of atoms: no other motif has it, the parent has it too (of a root: its first atom), a child may have it."""

MAX_LETTERS = 1000


@dataclass(frozen=True)
class Attachment:
    """A motif with marked atoms; HierVAE chooses motif and marks one after the other.

    Attributes:
        smiles: canonical, with single and double bonds, marks as atom maps.
        atoms: in the order of the SMILES.
        bonds: between them.
        marks: of the atoms.
    """

    smiles: str
    atoms: tuple[Label, ...]
    bonds: tuple[Bond, ...]
    marks: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.atoms)

    @cached_property
    def motif(self) -> str:
        """The SMILES without marks."""
        return written(self.atoms, self.bonds)[0]

    @cached_property
    def shared(self) -> tuple[int, ...]:
        """Places of the atoms that the parent has too."""
        return tuple(place for place, mark in enumerate(self.marks) if mark == SHARED)

    @cached_property
    def anchors(self) -> tuple[str, ...]:
        """The SMILES with the mark of one shared atom alone, for each of them."""
        return tuple(
            written(self.atoms, self.bonds, [SHARED * (place == one) for place in range(len(self))])[0]
            for one in self.shared
        )

    @staticmethod
    @lru_cache(maxsize=100_000)
    def named(smiles: str) -> Attachment:
        """Return the attachment of that SMILES, checked: it may be a stranger's.

        Raises:
            DataError: it is no motif with marks as `written` writes it.
        """
        shown = clean_text(repr(smiles), 80)
        molecule = None
        if len(smiles) <= MAX_LETTERS:
            with rdBase.BlockLogs():
                try:
                    molecule = Chem.MolFromSmiles(smiles, sanitize=False)
                # What RDKit raises for text that is no text to it is no closed list.
                except Exception as error:
                    raise DataError(f"{shown} is no motif; build the vocabulary again") from error
        if molecule is None or not molecule.GetNumAtoms():
            raise DataError(f"{shown} is no motif; build the vocabulary again")
        atoms = tuple((atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in molecule.GetAtoms())
        marks = tuple(atom.GetAtomMapNum() for atom in molecule.GetAtoms())
        kinds = [bond.GetBondType() for bond in molecule.GetBonds()]
        right = all(kind in ORDERS for kind in kinds) and max(marks) <= OPEN and SHARED in marks
        bonds = tuple(
            Bond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), ORDERS.get(bond.GetBondType(), 0))
            for bond in molecule.GetBonds()
        )
        whole = sanitised(atoms, bonds) if right else None
        if (
            whole is None
            or published_fault(whole)
            or learning_fault(whole)
            or written(atoms, bonds, marks)[0] != smiles
        ):
            raise DataError(f"{shown} is no motif that is written canonically; build the vocabulary again")
        return Attachment(smiles, atoms, bonds, marks)
