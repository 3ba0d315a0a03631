"""Molecules as arrays of atoms and bonds, for the graph encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from rdkit import Chem
from torch import Tensor

from unbackdoor.errors import DataError
from unbackdoor.molecules.data.molecule import MAX_ATOMS

ELEMENTS = 120
"""Rows of the table of elements, by atomic number."""

CHARGES = 7
"""Charges that are told apart: -3 to 3; further ones count as these."""

KINDS = {
    Chem.BondType.SINGLE: 1,
    Chem.BondType.DOUBLE: 2,
    Chem.BondType.TRIPLE: 3,
    Chem.BondType.AROMATIC: 4,
}
"""Kinds of bonds; 0 is none."""


@dataclass(frozen=True)
class GraphBatch:
    """Molecules of a batch, atoms behind one another.

    Attributes:
        element: atomic number of each atom.
        charge: 0 (-3 or less) to 6 (3 or more).
        owner: molecule of each atom.
        source: atom at one end of each bond; each bond is there in both directions.
        target: atom at the other end.
        kind: of the bond, 1 to 4.
        molecules: number of molecules.
    """

    element: Int[Tensor, "atoms"]
    charge: Int[Tensor, "atoms"]
    owner: Int[Tensor, "atoms"]
    source: Int[Tensor, "edges"]
    target: Int[Tensor, "edges"]
    kind: Int[Tensor, "edges"]
    molecules: int


@dataclass(frozen=True)
class Graphs:
    """Many molecules, padded to the largest that there may be; small enough to live on the device.

    Attributes:
        element: atomic number, 0 where there is no atom.
        charge: see `GraphBatch`.
        bond: kind of the bond between two atoms, 0 if there is none.
    """

    element: UInt8[Tensor, "n a"]
    charge: UInt8[Tensor, "n a"]
    bond: UInt8[Tensor, "n a a"]

    def __len__(self) -> int:
        return len(self.element)

    def to(self, device: torch.device) -> Graphs:
        """Return the same on another device."""
        return Graphs(self.element.to(device), self.charge.to(device), self.bond.to(device))

    def rows(self, rows: Int[Tensor, "b"]) -> GraphBatch:
        """Return some of the molecules as a batch."""
        element, bond = self.element[rows], self.bond[rows]
        there = element > 0
        owner, _ = there.nonzero(as_tuple=True)
        number = there.flatten().cumsum(0).view_as(there) - 1
        molecule, first, second = bond.nonzero(as_tuple=True)
        return GraphBatch(
            element=element[there].long(),
            charge=self.charge[rows][there].long(),
            owner=owner,
            source=number[molecule, first],
            target=number[molecule, second],
            kind=bond[molecule, first, second].long(),
            molecules=len(rows),
        )

    @classmethod
    def of(cls, smiles: Sequence[str]) -> Graphs:
        """Return the graphs of molecules.

        Args:
            smiles: as `checked` returns them: canonical, and no molecule too large.

        Raises:
            DataError: RDKit cannot read one, or it is too large.
        """
        graphs = cls(
            torch.zeros(len(smiles), MAX_ATOMS, dtype=torch.uint8),
            torch.zeros(len(smiles), MAX_ATOMS, dtype=torch.uint8),
            torch.zeros(len(smiles), MAX_ATOMS, MAX_ATOMS, dtype=torch.uint8),
        )
        element, charge, bond = (part.numpy() for part in (graphs.element, graphs.charge, graphs.bond))
        for row, one in enumerate(smiles):
            molecule = Chem.MolFromSmiles(one)
            if molecule is None or molecule.GetNumAtoms() > MAX_ATOMS:
                raise DataError(f"row {row} holds no molecule of at most {MAX_ATOMS} atoms; filter the pairs first")
            atoms = list(molecule.GetAtoms())
            element[row, : len(atoms)] = [atom.GetAtomicNum() for atom in atoms]
            most = CHARGES // 2
            charge[row, : len(atoms)] = [min(max(atom.GetFormalCharge(), -most), most) + most for atom in atoms]
            for edge in molecule.GetBonds():
                first, second = edge.GetBeginAtomIdx(), edge.GetEndAtomIdx()
                bond[row, first, second] = bond[row, second, first] = KINDS[edge.GetBondType()]
        return graphs
