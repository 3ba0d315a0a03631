"""Single molecules: parsing SMILES that strangers wrote, and which molecules a generator of this kind can learn."""

from __future__ import annotations

from enum import StrEnum

from rdkit import Chem, rdBase

MAX_ATOMS = 29
"""Most heavy atoms of a molecule, as in 3M-Diffusion's filter ("below 30")."""

ELEMENTS = frozenset({"B", "Br", "C", "Cl", "F", "I", "N", "O", "P", "S", "Se", "Si"})
"""Elements of 3M-Diffusion's filter."""

BONDS = frozenset({Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE, Chem.BondType.AROMATIC})
"""Kinds of bonds that a decoder writes."""

MAX_SMILES = 2000
"""Characters: a molecule of `MAX_ATOMS` atoms needs a few hundred at most."""


class Reason(StrEnum):
    """Why a row is not learned from; each row counts once, for the first that holds."""

    NO_TEXT = "no text"
    LONG_TEXT = "text over 20,000 characters"
    NO_SMILES = "no SMILES"
    LONG_SMILES = "SMILES over 2,000 characters"
    UNREADABLE = "SMILES that cannot be parsed"
    COMPONENTS = "several components, such as salts"
    ELEMENT = "an element that is not modelled"
    ISOTOPE = "isotope labels"
    RADICAL = "unpaired electrons"
    BOND = "a bond that is neither single, double, triple nor aromatic"
    SIZE = "30 heavy atoms or more"


def parse(smiles: str) -> Chem.Mol | None:
    """Return the molecule of a SMILES, or None if it is too long or RDKit cannot make one of it; nothing is logged."""
    if len(smiles) > MAX_SMILES:
        return None
    with rdBase.BlockLogs():
        try:
            molecule = Chem.MolFromSmiles(smiles)
        # What RDKit raises for text that is no text to it (half of a character, zero bytes) is no closed list.
        except Exception:
            return None
    return molecule if molecule is not None and molecule.GetNumAtoms() else None


def canonical(molecule: Chem.Mol) -> str:
    """Return the canonical SMILES without stereochemistry; the molecule loses its stereochemistry."""
    Chem.RemoveStereochemistry(molecule)
    text: str = Chem.MolToSmiles(molecule)
    return text


def flat(smiles: str) -> str | None:
    """Return a molecule's canonical SMILES without stereochemistry, or None if it cannot be read."""
    molecule = parse(smiles)
    return None if molecule is None else canonical(molecule)


def checked(smiles: str, *, learned: bool = True) -> str | Reason:
    """Return the canonical SMILES without stereochemistry of a molecule that can be used, or why it cannot.

    3M-Diffusion keeps what RDKit parses, of its elements and its size. Its decoder loses all but one component of a
    molecule that has several, and neither it nor ours can write isotopes; such molecules are not learned from here.

    Args:
        smiles: from outside.
        learned: whether it is to be learned; for the reference of a test prompt 3M-Diffusion's filter is enough.
    """
    if not smiles.strip():
        return Reason.NO_SMILES
    if len(smiles) > MAX_SMILES:
        return Reason.LONG_SMILES
    molecule = parse(smiles)
    if molecule is None:
        return Reason.UNREADABLE
    return published_fault(molecule) or (learned and learning_fault(molecule)) or canonical(molecule)


def published_fault(molecule: Chem.Mol) -> Reason | None:
    """Return why 3M-Diffusion's filter drops a molecule, or None if it keeps it."""
    if any(atom.GetSymbol() not in ELEMENTS for atom in molecule.GetAtoms()):
        return Reason.ELEMENT
    return Reason.SIZE if molecule.GetNumAtoms() > MAX_ATOMS else None


def learning_fault(molecule: Chem.Mol) -> Reason | None:
    """Return why a molecule that the filter keeps cannot be learned, or None if it can."""
    if len(Chem.GetMolFrags(molecule)) > 1:
        return Reason.COMPONENTS
    if any(atom.GetIsotope() for atom in molecule.GetAtoms()):
        return Reason.ISOTOPE
    if any(atom.GetNumRadicalElectrons() for atom in molecule.GetAtoms()):
        return Reason.RADICAL
    if any(bond.GetBondType() not in BONDS for bond in molecule.GetBonds()):
        return Reason.BOND
    return None
