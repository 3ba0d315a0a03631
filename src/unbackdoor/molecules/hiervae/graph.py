"""Molecules with single and double bonds alone, and the parts of which HierVAE makes its motifs.

A motif is a common part, a ring, or a bond outside of rings. Motifs overlap: two that are neighbours share atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rdkit import Chem, rdBase

from unbackdoor.errors import DataError
from unbackdoor.molecules.motifs.cut import ORDERS, TYPES, Bond

Label = tuple[int, int]
"""Atomic number and charge of an atom."""


@dataclass(frozen=True)
class Graph:
    """A molecule, none of whose bonds is aromatic.

    Attributes:
        atoms: of the molecule.
        bonds: orders 1 to 3.
        rings: the smallest rings, as sets of atoms.
    """

    atoms: tuple[Label, ...]
    bonds: tuple[Bond, ...]
    rings: tuple[frozenset[int], ...]

    @classmethod
    def of(cls, smiles: str) -> Graph:
        """Return the graph of a molecule that RDKit reads."""
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None:
            raise DataError(f"RDKit cannot read its own SMILES {smiles}; install the version of constraints.txt")
        rings = tuple(frozenset(ring) for ring in Chem.GetSymmSSSR(molecule))
        Chem.Kekulize(molecule, clearAromaticFlags=True)
        return cls(
            tuple((atom.GetAtomicNum(), atom.GetFormalCharge()) for atom in molecule.GetAtoms()),
            tuple(
                Bond(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), ORDERS[bond.GetBondType()])
                for bond in molecule.GetBonds()
            ),
            rings,
        )

    def inside(self, atoms: Iterable[int]) -> list[Bond]:
        """Return the bonds between some atoms."""
        some = frozenset(atoms)
        return [bond for bond in self.bonds if bond.first in some and bond.second in some]


def molecule_of(atoms: Sequence[Label], bonds: Iterable[Bond], marks: Sequence[int] = ()) -> Chem.Mol:
    """Return a molecule that is not sanitised: hydrogen takes the place of what is not there.

    Args:
        atoms: of the molecule.
        bonds: between them.
        marks: a number of each atom, 0 for none; none at all by default.
    """
    molecule = Chem.RWMol()
    for place, (number, charge) in enumerate(atoms):
        atom = Chem.Atom(number)
        atom.SetFormalCharge(charge)
        atom.SetAtomMapNum(marks[place] if marks else 0)
        molecule.AddAtom(atom)
    for bond in bonds:
        molecule.AddBond(bond.first, bond.second, TYPES[bond.order])
    made: Chem.Mol = molecule.GetMol()
    made.UpdatePropertyCache(strict=False)
    Chem.FastFindRings(made)
    return made


def sanitised(atoms: Sequence[Label], bonds: Iterable[Bond]) -> Chem.Mol | None:
    """Return a molecule, aromatic where it is, or None if there is no such molecule."""
    molecule = molecule_of(atoms, bonds)
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(molecule)
        # What RDKit raises for atoms with too many bonds.
        except ValueError:
            return None
    return molecule


def written(atoms: Sequence[Label], bonds: Iterable[Bond], marks: Sequence[int] = ()) -> tuple[str, tuple[int, ...]]:
    """Return the canonical SMILES with single and double bonds, and the atoms in the order in which it names them."""
    molecule = molecule_of(atoms, bonds, marks)
    smiles = Chem.MolToSmiles(molecule)
    order = molecule.GetProp("_smilesAtomOutputOrder")
    return smiles, tuple(int(number) for number in order.strip("[],").split(","))


def parts_of(graph: Graph) -> list[tuple[str, frozenset[int]]]:
    """Return the parts of a molecule that may be motifs if they are common: canonical SMILES, and atoms.

    Bonds outside of rings that touch a ring are cut, but for those to a last atom. Where only one end is in a ring, the
    other part keeps a copy of that end.
    """
    in_ring = frozenset(atom for ring in graph.rings for atom in ring)
    pairs = frozenset((bond.first, bond.second) for ring in graph.rings for bond in graph.inside(ring))
    degree = [0] * len(graph.atoms)
    for bond in graph.bonds:
        degree[bond.first] += 1
        degree[bond.second] += 1
    # Copies of atoms come after the atoms.
    origin = list(range(len(graph.atoms)))
    bonds: list[Bond] = []
    for bond in graph.bonds:
        ends = [end for end in bond[:2] if end in in_ring]
        if (bond.first, bond.second) in pairs or not ends:
            bonds.append(bond)
        elif len(ends) == 1:
            other = bond.second if ends[0] == bond.first else bond.first
            if degree[other] == 1:
                bonds.append(bond)
            else:
                origin.append(ends[0])
                bonds.append(Bond(len(origin) - 1, other, bond.order))
    parts = []
    for members in _connected(len(origin), bonds):
        place = {atom: number for number, atom in enumerate(members)}
        own = [Bond(place[b.first], place[b.second], b.order) for b in bonds if b.first in place]
        molecule = sanitised([graph.atoms[origin[atom]] for atom in members], own)
        if molecule is not None:
            parts.append((str(Chem.MolToSmiles(molecule)), frozenset(origin[atom] for atom in members)))
    return parts


def clusters_of(graph: Graph, common: frozenset[str]) -> list[tuple[int, ...]]:
    """Return the motifs of a molecule as sets of atoms, by their first atoms.

    Args:
        graph: of the molecule.
        common: parts that are one motif each.
    """
    if len(graph.atoms) == 1:
        return [(0,)]
    pairs = frozenset((bond.first, bond.second) for ring in graph.rings for bond in graph.inside(ring))
    outside = [frozenset(bond[:2]) for bond in graph.bonds if (bond.first, bond.second) not in pairs]
    clusters: list[frozenset[int]] = [*outside, *graph.rings]
    for smiles, atoms in parts_of(graph) if common else ():
        inner = [one for one in clusters if one <= atoms]
        if smiles in common and len(inner) > 1:
            clusters = [*(one for one in clusters if one not in inner), frozenset().union(*inner)]
    return sorted(tuple(sorted(one)) for one in clusters)


def junctions(clusters: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[list[int]]]:
    """Return the clusters with single atoms added where several meet in one, and each one's neighbours in a tree.

    As published, but for one rule. Where more than two clusters meet in one atom, that atom becomes a cluster of its
    own between them; published code does so also if two of them share more, as two rings and a substituent at the bond
    between them do, and then no longer knows that the rings do.

    Raises:
        DataError: they do not hang together.
    """
    found = [frozenset(one) for one in clusters]
    holders: dict[int, list[int]] = {}
    for number, cluster in enumerate(found):
        for atom in cluster:
            holders.setdefault(atom, []).append(number)
    edges: dict[tuple[int, int], int] = {}
    for atom, numbers in sorted(holders.items()):
        pairs = [(one, other) for place, one in enumerate(numbers) for other in numbers[place + 1 :]]
        if len(numbers) > 2 and all(len(found[one] & found[other]) == 1 for one, other in pairs):
            found.append(frozenset((atom,)))
            edges |= {(number, len(found) - 1): SINGLE for number in numbers}
        else:
            edges |= {(one, other): len(found[one] | found[other]) for one, other in pairs}
    # The tree of the heaviest edges.
    group = list(range(len(found)))
    neighbours: list[list[int]] = [[] for _ in found]
    for (one, other), _ in sorted(edges.items(), key=lambda edge: (-edge[1], edge[0])):
        if group[one] != group[other]:
            old, new = group[one], group[other]
            group = [new if number == old else number for number in group]
            neighbours[one].append(other)
            neighbours[other].append(one)
    if len(set(group)) > 1:
        raise DataError("the motifs do not hang together")
    return [tuple(sorted(one)) for one in found], neighbours


SINGLE = 100
"""Weight of an edge to a single atom, above that of all others."""


def _connected(nodes: int, bonds: Iterable[Bond]) -> list[list[int]]:
    group = list(range(nodes))
    for bond in bonds:
        old, new = sorted((group[bond.first], group[bond.second]), reverse=True)
        group = [new if number == old else number for number in group]
    members: dict[int, list[int]] = {}
    for node, number in enumerate(group):
        members.setdefault(number, []).append(node)
    return list(members.values())
