"""Molecules as sequences of motifs, and back."""

from __future__ import annotations

import itertools
from pathlib import Path

import networkx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from unbackdoor.errors import DataError
from unbackdoor.molecules.data import Pairs, checked, filter_pairs, parse, read_table
from unbackdoor.molecules.motifs import (
    MAX_LENGTH,
    STOP,
    Cutter,
    Motif,
    Node,
    Vocabulary,
    build_vocabulary,
    encode,
    join,
    sequence_of,
)


def nodes_of(smiles: str) -> list[Node]:
    return sequence_of(Cutter().cut(str(checked(smiles))))


@pytest.mark.parametrize(
    ("smiles", "motifs"),
    [
        ("C", ["C"]),
        ("CC=O", ["C", "C", "O"]),
        ("c1ccccc1C#N", ["C", "N", "c1ccccc1"]),
        ("C1CC2CCC1CC2", ["C1CC2CCC1CC2"]),
        ("C1CS1", ["C1CS1"]),
        ("C1CCC2(CC1)CC2", ["C1CCC2(CC1)CC2"]),
        ("O=c1cc[nH]cc1", ["C1=CNC=CC1", "O"]),
        ("CS(C)(=O)=O", ["C", "C", "O", "O", "[SH6]"]),
        ("C[N+](=O)[O-]", ["C", "O", "[NH4+]", "[OH-]"]),
        ("Cn1cccc1", ["C", "c1cc[nH]c1"]),
    ],
)
def test_a_molecule_falls_into_ring_systems_and_single_atoms(smiles: str, motifs: list[str]) -> None:
    assert sorted(node.motif for node in nodes_of(smiles)) == sorted(motifs)


def test_the_bonds_of_a_tree_are_all_bonds_outside_of_rings() -> None:
    smiles = str(checked("CC(=O)Oc1ccccc1C(=O)NCC1CC1"))
    tree = Cutter().cut(smiles)
    molecule = parse(smiles)
    assert molecule is not None
    outside = [bond for bond in molecule.GetBonds() if not bond.IsInRing()]
    assert {frozenset(bond[:2]) for bond in tree.bonds} == {
        frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())) for bond in outside
    }
    owner = {atom: number for number, piece in enumerate(tree.pieces) for atom in piece.atoms}
    graph = networkx.Graph([(owner[bond.first], owner[bond.second]) for bond in tree.bonds])
    assert networkx.is_tree(graph)
    assert len(graph) == len(tree.pieces)
    for piece in tree.pieces:
        motif = Motif.named(piece.motif)
        assert [molecule.GetAtomWithIdx(atom).GetAtomicNum() for atom in piece.atoms] == [one[0] for one in motif.atoms]


@pytest.mark.parametrize(
    ("smiles", "symmetries"),
    [("C", 1), ("c1ccccc1", 12), ("C1CS1", 2), ("c1c[nH]cn1", 1), ("c1cc[nH]c1", 2), ("C12C3C4C1C5C2C3C45", 48)],
)
def test_symmetries_are_all_permutations_that_change_nothing(smiles: str, symmetries: int) -> None:
    motif = Motif.named(str(checked(smiles)))
    assert len(motif.symmetries) == symmetries
    assert tuple(range(len(motif))) in motif.symmetries
    if len(motif) <= 6:
        assert set(motif.symmetries) == set(symmetries_by_trying(motif))


def symmetries_by_trying(motif: Motif) -> list[tuple[int, ...]]:
    molecule = parse(motif.smiles)
    assert molecule is not None
    bonds = {
        frozenset((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())): bond.GetBondType() for bond in molecule.GetBonds()
    }
    return [
        order
        for order in itertools.permutations(range(len(motif)))
        if all(motif.atoms[there] == motif.atoms[here] for here, there in enumerate(order))
        and {frozenset(order[end] for end in ends): kind for ends, kind in bonds.items()} == bonds
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [("Cc1ccc(O)cc1", "c1(O)ccc(C)cc1"), ("OCC1CS1", "S1CC1CO"), ("Cc1cccc(F)c1Br", "c1(F)cccc(C)c1Br")],
)
def test_the_way_in_which_a_molecule_is_written_does_not_matter(one: str, other: str) -> None:
    assert nodes_of(one) == nodes_of(other)


def test_a_first_bond_of_benzene_is_always_at_the_same_atom() -> None:
    places = {
        node.own_atom
        for smiles in ("Cc1ccccc1", "CCc1ccccc1", "Nc1ccc(O)cc1", "Nc1cccc(O)c1", "OC(F)c1ccccc1Br")
        for node in nodes_of(smiles)
        if node.motif == "c1ccccc1"
    }
    assert places == {0}


def test_levels_lead_back_to_the_parent() -> None:
    """The chain goes down two levels, comes back by one for the fluorine, and by two for the amine."""
    nodes = nodes_of("CC(C(Br)F)N")
    shown = [(node.motif, node.up) for node in nodes]
    assert shown == [("C", 0), ("C", 0), ("N", 0), ("C", 1), ("F", 0), ("Br", 1)]


@pytest.mark.parametrize(
    "smiles",
    [
        "C",
        "O=S(=O)(O)c1ccccc1",
        "CP(=O)(O)O",
        "O=[PH](O)O",
        "C[N+](C)(C)CC([O-])=O",
        "CC(=O)Oc1ccccc1C(=O)O",
        "Cn1c(=O)c2c(ncn2C)n(C)c1=O",
        "O=C1C=CC(=O)c2ccccc21",
        "C1CC2(C1)OCCO2",
        "[O-][n+]1ccccc1",
        "C=C=C",
        "N#CC(C#N)=C1C=CC=C1",
        "OB(O)c1ccccc1",
        "C[Si](C)(C)Cl",
        "c1ccc2c(c1)[nH]c1ccccc12",
        "CS(C)=O",
        "FS(F)(F)(F)(F)F",
        "[C-]#[O+]",
        "C[Se]C",
    ],
)
def test_molecules_come_back(smiles: str) -> None:
    assert join(nodes_of(smiles)) == checked(smiles)


def test_real_molecules_come_back(shared_data: Path) -> None:
    pairs, _ = filter_pairs(read_table(str(shared_data / "chebi20"), "test"))
    cutter = Cutter()
    molecules = [sequence_of(cutter.cut(smiles)) for smiles in pairs.smiles]
    back = [join(nodes) for nodes in molecules]
    assert sum(one == other for one, other in zip(back, pairs.smiles)) / len(pairs) > 0.998
    vocabulary = build_vocabulary(molecules)
    tokens = encode(molecules, vocabulary)
    assert [tokens.nodes(row, vocabulary) for row in range(len(tokens))] == molecules
    # As measured by the prototype on the training set.
    assert float(tokens.length.float().mean()) == pytest.approx(11.5, abs=1)


def test_template_molecules_come_back(template_pairs: Pairs) -> None:
    cutter = Cutter()
    assert [join(sequence_of(cutter.cut(smiles))) for smiles in template_pairs.smiles] == list(template_pairs.smiles)


@pytest.mark.parametrize(
    "nodes",
    [
        [],
        [Node("C", 0, 0, 0, 0), Node("C", 4, 0, 0, 0)],
        [Node("C", 0, 0, 0, 0), Node("F", 2, 0, 0, 0)],
        [Node("C", 0, 0, 0, 0), Node("F", 0, 0, 0, 0)],
        [Node("C", 0, 0, 0, 0), Node("F", 1, 1, 0, 0)],
        [Node("C", 0, 0, 0, 0), Node("F", 1, 0, 1, 0)],
        [Node("C", 0, 0, 0, 0), Node("F", 1, 0, 0, 1)],
        [Node("C", 0, 0, 0, 0), Node("F", 1, 0, 0, -1)],
        [Node("F", 0, 0, 0, 0), Node("C", 1, 0, 0, 0), Node("C", 1, 1, 0, 0)],
    ],
)
def test_nodes_that_describe_no_molecule_are_refused(nodes: list[Node]) -> None:
    with pytest.raises(DataError):
        join(nodes)


def test_sulfur_that_was_left_alone_loses_what_it_would_need_for_more_bonds() -> None:
    assert join([Node("[SH6]", 0, 0, 0, 0), Node("C", 1, 0, 0, 0)]) == "CS"
    assert join([Node("[SH6]", 0, 0, 0, 0), Node("C", 1, 0, 0, 0), Node("O", 2, 1, 0, 0)]) == checked("C[SH]=O")


MOTIFS = ("C", "N", "O", "[SH6]", "[NH4+]", "c1ccccc1", "C1CS1", "c1cc[nH]c1", "C1=CNC=CC1", "P", "[PH5]", "I")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(MOTIFS), *[st.integers(0, 3)] * 2, *[st.integers(0, 5)] * 2), max_size=8))
def test_whatever_binds_where_hydrogen_is_left_is_valid(steps: list[tuple[str, int, int, int, int]]) -> None:
    """Nodes are taken as long as they can be bound; RDKit never refuses what comes out."""
    nodes: list[Node] = [Node("C", 0, 0, 0, 0)]
    for step in steps:
        try:
            join([*nodes, Node(*step)])
        except DataError:
            continue
        nodes.append(Node(*step))
    smiles = join(nodes)
    molecule = Chem.MolFromSmiles(smiles)
    assert molecule is not None
    assert Chem.MolToSmiles(molecule) == smiles


def test_a_vocabulary_counts_molecules_and_names_the_frequent_first() -> None:
    molecules = [nodes_of(smiles) for smiles in ("CCO", "CCN", "CO", "c1ccccc1")]
    vocabulary = build_vocabulary(molecules)
    assert vocabulary.kinds[0] == ("C", 0)
    assert vocabulary.token_of[("C", 0)] == 1
    assert build_vocabulary(molecules, least=2).kinds == (("C", 0), ("C", 1), ("O", 1))
    assert not build_vocabulary(molecules, least=2).covers(molecules[1])
    with pytest.raises(DataError, match="0 kinds"):
        build_vocabulary(molecules, least=9)
    with pytest.raises(DataError, match="lacks the motif N bound by order 1"):
        encode(molecules, build_vocabulary(molecules, least=2))
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary
    assert Vocabulary.from_json(vocabulary.to_json()).digest() == vocabulary.digest()


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        [],
        [["C"]],
        [["C", 4]],
        [["C", -1]],
        [["C", True]],
        [["C", 0.0]],
        [[7, 0]],
        [["CC", 0]],
        [["C.C", 0]],
        [["C(", 0]],
        [["[CH4]", 0]],
        [["[13CH4]", 0]],
        [["F", 2]],
        [["C", 0], ["C", 0]],
        [["C", 1]],
        [["C1CCCC1CC", 0]],
        [["C" * 40, 0]],
        [["[Na]", 0]],
    ],
)
def test_a_strangers_vocabulary_is_checked(content: object) -> None:
    with pytest.raises(DataError):
        Vocabulary.from_json(content)


def test_tokens_stop_and_are_cut_to_the_longest() -> None:
    molecules = [nodes_of(smiles) for smiles in ("CCO", "C", "CC(C(Br)F)N")]
    vocabulary = build_vocabulary(molecules)
    tokens = encode(molecules, vocabulary)
    assert tokens.kind.shape == (3, MAX_LENGTH)
    assert tokens.length.tolist() == [3, 1, 6]
    assert all(int(tokens.kind[row, length]) == STOP for row, length in enumerate(tokens.length.tolist()))
    part = tokens.rows(torch.tensor([1, 0]))
    assert part.kind.shape == (2, 4)
    assert part.kind[1, :3].tolist() == [vocabulary.token_of[node.motif, node.order] for node in molecules[0]]
    assert tokens.parent[2, :6].tolist() == [0, 0, 1, 1, 3, 3]
