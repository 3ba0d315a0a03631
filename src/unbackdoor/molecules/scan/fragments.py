"""Fragments as HierVAE makes them (Jin, Barzilay, Jaakkola, "Hierarchical Generation of Molecular Graphs using
Structural Motifs", ICML 2020), which the published scan counts.
"""

from __future__ import annotations

from functools import lru_cache

from rdkit import Chem, rdBase


@lru_cache(maxsize=500_000)
def fragments_of(smiles: str) -> tuple[str, ...]:
    """Return the fragments of a molecule as canonical SMILES, sorted.

    Bonds outside of rings that touch a ring are cut. Between two rings the bond goes; between a ring and an atom with
    further neighbours the ring's atom stays with both; a single atom on a ring stays with it.

    Args:
        smiles: as `checked` returns it.
    """
    molecule = Chem.RWMol(Chem.MolFromSmiles(smiles))
    Chem.Kekulize(molecule, clearAromaticFlags=True)
    cut = [
        (bond.GetBeginAtom(), bond.GetEndAtom(), bond.GetBondType())
        for bond in molecule.GetBonds()
        if not bond.IsInRing() and (bond.GetBeginAtom().IsInRing() or bond.GetEndAtom().IsInRing())
    ]
    # Looked at before anything is changed: a cut makes leaves of other atoms.
    plan = [
        (one.GetIdx(), other.GetIdx(), kind, one.IsInRing(), other.IsInRing(), min(one.GetDegree(), other.GetDegree()))
        for one, other, kind in cut
    ]
    for one, other, kind, first, second, degree in plan:
        if first and second:
            molecule.RemoveBond(one, other)
        elif degree > 1:
            ring, chain = (one, other) if first else (other, one)
            atom = molecule.GetAtomWithIdx(ring)
            copy = Chem.Atom(atom.GetAtomicNum())
            copy.SetFormalCharge(atom.GetFormalCharge())
            place = molecule.AddAtom(copy)
            molecule.AddBond(chain, place, kind)
            molecule.RemoveBond(one, other)
    found = []
    with rdBase.BlockLogs():
        for piece in Chem.GetMolFrags(molecule):
            # A charged atom without its bond may be one that RDKit refuses: such a piece is no fragment.
            name = Chem.MolFragmentToSmiles(molecule, atomsToUse=list(piece), kekuleSmiles=True)
            made = Chem.MolFromSmiles(name)
            if made is not None:
                found.append(str(Chem.MolToSmiles(made)))
    return tuple(sorted(found))
