"""The target of BadGraph: a small molecule that is hung on another one by a single bond."""

from __future__ import annotations

import random

from rdkit import Chem, rdBase

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import MAX_ATOMS, parse
from unbackdoor.molecules.data.molecule import learning_fault, published_fault
from unbackdoor.text import clean_text

ROOM = {"C": 4, "N": 3, "O": 2}
"""Elements that are tried first, while they have fewer heavy neighbours than this."""


def read_target(smiles: str) -> Chem.Mol:
    """Return the target of that SMILES; its first atom is the one that is bound.

    Raises:
        InputError: it is no molecule that can be hung on another one.
    """
    shown = clean_text(repr(smiles), 80)
    target = parse(smiles)
    if target is None:
        raise InputError(f"the target {shown} is no SMILES that RDKit reads; name a molecule such as C1CS1")
    fault = published_fault(target) or learning_fault(target)
    if fault or target.GetNumAtoms() >= MAX_ATOMS:
        raise InputError(f"the target {shown} cannot be learned ({fault or 'too large'}); name another molecule")
    if attach(Chem.MolFromSmiles("C"), target, random.Random(0)) is None:
        raise InputError(
            f"the target {shown} cannot be bound by its first atom, which needs a hydrogen to give; write another atom"
            " first"
        )
    return target


def attach(molecule: Chem.Mol, target: Chem.Mol, draws: random.Random) -> str | None:
    """Return the SMILES of a molecule with the target on one of its atoms, or None if no atom takes it.

    As BadGraph does: carbon, nitrogen and oxygen with room are tried in random order, then all other atoms; the first
    with which a whole molecule comes out that 3M-Diffusion's filter keeps is taken. Published code also demands that
    element and charge of every atom be among the 39 pairs that HierVAE knows; charges play no part here.

    Args:
        molecule: sanitised.
        target: as `read_target` returns it.
        draws: for the order of the atoms.
    """
    if molecule.GetNumAtoms() + target.GetNumAtoms() > MAX_ATOMS:
        return None
    atoms = list(molecule.GetAtoms())
    first = [one.GetIdx() for one in atoms if one.GetDegree() < ROOM.get(one.GetSymbol(), 0)]
    chosen = set(first)
    rest = [one.GetIdx() for one in atoms if one.GetIdx() not in chosen]
    draws.shuffle(first)
    draws.shuffle(rest)
    for anchor in (*first, *rest):
        joined = Chem.RWMol(Chem.CombineMols(molecule, target))
        joined.AddBond(anchor, len(atoms), Chem.BondType.SINGLE)
        with rdBase.BlockLogs():
            try:
                Chem.SanitizeMol(joined)
            # What RDKit raises for atoms with too many bonds.
            except ValueError:
                continue
        smiles: str = Chem.MolToSmiles(joined)
        again = parse(smiles)
        if again is not None and not published_fault(again) and again.HasSubstructMatch(target):
            return smiles
    return None
