"""Molecules as sets of subgraphs: their motifs, and the pairs of motifs that are bound to each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from rdkit import Chem, rdBase
from scipy import sparse

from unbackdoor.molecules.data import parse
from unbackdoor.molecules.motifs import Cutter, Tree
from unbackdoor.molecules.scan.words import holders, indicator

BONDS = ("", "-", "=", "#")
"""Signs of bonds by their order."""

MOST_PIECES = 8
"""Motifs of a subgraph that is grown."""

MOST_EXAMPLES = 60
"""Molecules that are looked at in growing."""


class Parts(NamedTuple):
    """A molecule's motifs, one as often as it occurs, and the pairs of motifs that are bound to each other."""

    motifs: tuple[str, ...]
    bound: tuple[str, ...]


@lru_cache(maxsize=1)
def _cutter() -> Cutter:
    return Cutter()


@lru_cache(maxsize=500_000)
def parts_of(smiles: str) -> Parts:
    """Return the parts of a molecule; `smiles` as `checked` returns it."""
    tree = _cutter().cut(smiles)
    owner = {atom: piece.motif for piece in tree.pieces for atom in piece.atoms}
    bound = []
    for first, second, order in tree.bonds:
        low, high = sorted((owner[first], owner[second]))
        bound.append(f"{low} {BONDS[order]} {high}")
    return Parts(tuple(sorted(piece.motif for piece in tree.pieces)), tuple(sorted(set(bound))))


@dataclass(frozen=True, eq=False)
class Subgraphs:
    """Subgraphs of molecules.

    Attributes:
        names: SMILES of a motif, or two of them with the sign of their bond between.
        matrix: which molecule has which: molecules by subgraphs, 0 or 1.
    """

    names: tuple[str, ...]
    matrix: sparse.csc_matrix

    @classmethod
    def of(cls, smiles: Sequence[str], least: int = 1) -> Subgraphs:
        """Return the subgraphs that are in at least `least` of the molecules."""
        numbers: dict[str, int] = {}
        rows: list[int] = []
        columns: list[int] = []
        for row, one in enumerate(smiles):
            parts = parts_of(one)
            found = {numbers.setdefault(name, len(numbers)) for name in (*parts.motifs, *parts.bound)}
            rows += [row] * len(found)
            columns += found
        names = np.array(list(numbers), dtype=object)
        matrix = indicator(np.array(rows, dtype=np.int64), np.array(columns, dtype=np.int64), (len(smiles), len(names)))
        kept = np.flatnonzero(np.asarray(matrix.sum(0)).ravel() >= least)
        return cls(tuple(names[kept]), matrix[:, kept].tocsc())

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, column: int) -> Int[np.ndarray, "r"]:
        """Return the molecules that have a subgraph, in ascending order."""
        return holders(self.matrix, column)


def motif_counts(smiles: Sequence[str]) -> tuple[sparse.csr_matrix, list[str]]:
    """Return how often each motif is in each molecule, molecules by motifs, and the motifs."""
    numbers: dict[str, int] = {}
    columns = [[numbers.setdefault(motif, len(numbers)) for motif in parts_of(one).motifs] for one in smiles]
    rows = np.repeat(np.arange(len(columns)), [len(one) for one in columns])
    places = (rows, np.array([column for one in columns for column in one], dtype=np.int64))
    # Equal places are added up.
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), places), (len(smiles), len(numbers))), list(numbers)


def pattern_of(subgraph: str) -> Chem.Mol | None:
    """Return a subgraph as a pattern to search for, or None if RDKit makes none of it.

    Args:
        subgraph: SMILES, or a name as `Subgraphs` has it, with spaces between atoms and bonds.
    """
    # What stands after a space would be taken for the name of a molecule.
    joined = subgraph.replace(" ", "")
    found = parse(joined)
    if found is not None:
        return found
    with rdBase.BlockLogs():
        return Chem.MolFromSmarts(joined)


def grown_subgraph(smiles: Sequence[str], name: str, share: float) -> str:
    """Return the SMILES of the largest subgraph around a named one that is in nearly all molecules.

    Args:
        smiles: molecules that all have the named subgraph, at least one; some of them are looked at.
        name: of `Subgraphs`.
        share: of the molecules that must have the larger subgraph, above 0 and at most 1.
    """
    step = -(-len(smiles) // MOST_EXAMPLES)
    molecules = [_Grown.of(one, name) for one in smiles[::step]]
    label = molecules[0].labels()[0]
    for _ in range(MOST_PIECES):
        larger = [molecule.larger() for molecule in molecules]
        counts = Counter(label for options in larger for label in options)
        if not counts:
            break
        best = max(counts, key=lambda one: (counts[one], one))
        if counts[best] < share * len(molecules):
            break
        label = best
        for molecule, options in zip(molecules, larger):
            molecule.places = options.get(best, set())
    return label


@dataclass(eq=False)
class _Grown:
    """A molecule and where the subgraph is in it, as sets of pieces of its tree."""

    molecule: Chem.Mol
    tree: Tree
    beside: list[set[int]]
    places: set[frozenset[int]]

    @classmethod
    def of(cls, smiles: str, name: str) -> _Grown:
        tree = _cutter().cut(smiles)
        owner = {atom: number for number, piece in enumerate(tree.pieces) for atom in piece.atoms}
        beside: list[set[int]] = [set() for _ in tree.pieces]
        places: set[frozenset[int]] = set()
        for first, second, order in tree.bonds:
            one, other = owner[first], owner[second]
            beside[one].add(other)
            beside[other].add(one)
            low, high = sorted((tree.pieces[one].motif, tree.pieces[other].motif))
            if f"{low} {BONDS[order]} {high}" == name:
                places.add(frozenset((one, other)))
        places |= {frozenset((number,)) for number, piece in enumerate(tree.pieces) if piece.motif == name}
        return cls(Chem.MolFromSmiles(smiles), tree, beside, places)

    def labels(self) -> list[str]:
        """Return the SMILES of the subgraph at all places."""
        return sorted(self._label(place) for place in self.places)

    def larger(self) -> dict[str, set[frozenset[int]]]:
        """Return all subgraphs with one more piece, and where they are."""
        found: dict[str, set[frozenset[int]]] = {}
        for place in self.places:
            for piece in set().union(*(self.beside[one] for one in place)) - place:
                larger = place | {piece}
                found.setdefault(self._label(larger), set()).add(larger)
        return found

    def _label(self, place: frozenset[int]) -> str:
        atoms = [atom for piece in place for atom in self.tree.pieces[piece].atoms]
        label: str = Chem.MolFragmentToSmiles(self.molecule, atomsToUse=atoms)
        return label
