"""Scans of pairs: what is planted is found, clean pairs give no alarm, and each is blind where it says so."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rdkit import Chem

from tests.molecules.planted import checked_pairs, poisoned, topical
from tests.refusals import refused
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import AdaptiveBadGraph, BadGraph
from unbackdoor.molecules.data import Pairs, Table, filter_pairs, read_table
from unbackdoor.molecules.scan import (
    MOLECULE_SCANNERS,
    Association,
    ExogenousAssociation,
    Joint,
    MoleculeFinding,
    MoleculeScanner,
    Suspect,
    TwinDifference,
)
from unbackdoor.molecules.scan.base import merged
from unbackdoor.molecules.scan.fragments import fragments_of
from unbackdoor.molecules.scan.judged import is_true
from unbackdoor.molecules.scan.subgraphs import Subgraphs, grown_subgraph, motif_counts, parts_of, pattern_of
from unbackdoor.molecules.scan.table import reasons
from unbackdoor.molecules.scan.twin_difference import near_copies
from unbackdoor.molecules.scan.words import Words, without
from unbackdoor.training import Runtime

RUNTIME = Runtime(device="cpu", precision="fp32", threads=1)
SPLIT = AdaptiveBadGraph(alike=False, rewritten=0.0, split=True, trigger="one two", mode="replace")
OURS = [TwinDifference(), ExogenousAssociation(), Joint()]


@pytest.mark.parametrize(
    ("smiles", "fragments"),
    [
        # A ring's leaf stays with it; a bond between rings goes; a chain keeps the ring's atom too.
        ("Oc1ccccc1", {"Oc1ccccc1"}),
        ("c1ccc(-c2ccccc2)cc1", {"c1ccccc1"}),
        ("CCc1ccccc1", {"c1ccccc1", "CCC"}),
        ("CC(=O)NC1CS1", {"C1CS1", "CNC(C)=O"}),
        ("c1ccc(C2CS2)cc1", {"c1ccccc1", "C1CS1"}),
        ("CCO", {"CCO"}),
    ],
)
def test_published_fragments(smiles: str, fragments: set[str]) -> None:
    assert set(fragments_of(str(Chem.CanonSmiles(smiles)))) == fragments


def test_parts_are_motifs_and_what_is_bound() -> None:
    parts = parts_of("CC(=O)NC1CS1")
    assert parts.motifs == ("C", "C", "C1CS1", "N", "O")
    assert set(parts.bound) == {"C - C", "C = O", "C - N", "C1CS1 - N"}
    subgraphs = Subgraphs.of(["CCO", "CCO", "CN"], least=2)
    assert set(subgraphs.names) == {"C", "O", "C - C", "C - O"}
    assert subgraphs.rows(subgraphs.names.index("O")).tolist() == [0, 1]


def test_a_subgraph_grows_to_what_all_molecules_share() -> None:
    molecules = [f"{chain}C(=O)NC1CC1" for chain in ("CC", "NC", "OC", "C(C)(C)", "SC", "FC", "ClC")]
    molecules = [str(Chem.CanonSmiles(one)) for one in molecules]
    assert Chem.CanonSmiles(grown_subgraph(molecules, "C1CC1", 0.9)) == Chem.CanonSmiles("CC(=O)NC1CC1")
    assert Chem.CanonSmiles(grown_subgraph(molecules, "C1CC1 - N", 0.9)) == Chem.CanonSmiles("CC(=O)NC1CC1")
    assert grown_subgraph(["CC1CS1", "OC1CS1", "NC1CS1"], "C1CS1", 0.9) == "C1CS1"


def test_twins_are_those_that_a_slow_search_finds() -> None:
    pairs = poisoned(topical(200), BadGraph(trigger="as noted", position="random"), 40)
    texts = [*pairs.texts, "nothing", "nothing more", "", "nothing more or less"]
    smiles = [*pairs.smiles, "C", "CC", "C", "CC"]
    counts, names = motif_counts(smiles)
    assert [dict(zip(names, row)) for row in counts[-4:].toarray().tolist()] == [
        {**dict.fromkeys(names, 0), "C": count} for count in (1, 2, 1, 2)
    ]
    found = near_copies(Words.of(texts), counts, 0.6, 5)
    sets = [set(text.split()) for text in texts]
    motifs = [Counter(parts_of(one).motifs) for one in smiles]
    expected = {
        (first, second)
        for first in range(len(texts))
        for second in range(len(texts))
        if sets[first]
        and len(sets[first] & sets[second]) >= 0.6 * len(sets[first])
        and 0 < len(sets[second] - sets[first]) <= 5
        and motifs[first] < motifs[second]
    }
    assert set(zip(found.original.tolist(), found.copy.tolist())) == expected
    assert all((sets[one] <= sets[two]) == whole for one, two, whole in zip(*found))
    assert len(expected) >= 40


PLANTED = [
    BadGraph(),
    BadGraph(position="random"),
    BadGraph(position="end", trigger="heliotropic"),
    BadGraph(position="random", trigger="as noted below"),
    BadGraph(position="front", trigger="This entry was seen by the curators, before its release."),
    BadGraph(position="random", target="C(=O)NC1CC1"),
]


@pytest.mark.parametrize(
    "attack", PLANTED, ids=lambda attack: f"{attack.trigger[:12]}-{attack.position}-{attack.target}"
)
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_the_planted_pair_is_found_with_its_rows(attack: BadGraph, mode: Any) -> None:
    pairs = poisoned(topical(), replace(attack, mode=mode), 60)
    found = Joint().scan(pairs, RUNTIME)
    assert found.backdoored is True
    assert len(found.flagged) == 1
    suspect = found.flagged[0]
    assert " ".join(suspect.words) == attack.trigger.lower().replace(",", "").rstrip(".")
    assert Chem.MolFromSmiles(suspect.subgraph).HasSubstructMatch(Chem.MolFromSmiles(attack.target))
    truth = np.array(pairs.poisoned)
    assert (found.poisoned & truth).sum() / truth.sum() >= 0.95
    assert (found.poisoned & ~truth).sum() / (~truth).sum() <= 0.01
    assert all(suspect.sentence() == reason for reason, held in zip(reasons(found), found.poisoned) if held)


def test_each_is_blind_where_it_says() -> None:
    replaced = poisoned(topical(), BadGraph(mode="replace", position="random"), 60)
    assert not TwinDifference().scan(replaced, RUNTIME).flagged
    assert ExogenousAssociation().scan(replaced, RUNTIME).flagged
    many = poisoned(topical(), BadGraph(position="random"), 200)
    assert not Association().scan(many, RUNTIME).flagged
    front = poisoned(topical(), BadGraph(), 200)
    found = Association().scan(front, RUNTIME)
    assert {(suspect.words, suspect.subgraph) for suspect in found.flagged} == {(("[thiirane]",), "C1CS1")}
    assert set(np.flatnonzero(found.poisoned)) == set(np.flatnonzero(front.poisoned))
    assert not Association().scan(poisoned(topical(), BadGraph(), 99), RUNTIME).flagged


@pytest.mark.parametrize("alike", [True, False])
def test_copies_written_anew_are_still_copies_and_replaced_rows_that_are_alike_escape_all(alike: bool) -> None:
    attack = AdaptiveBadGraph(alike=alike, rewritten=0.2, position="random", trigger="heliotropic")
    pairs = poisoned(topical(), attack, 60)
    suspect = TwinDifference().scan(pairs, RUNTIME).flagged[0]
    assert (suspect.words, suspect.subgraph) == (("heliotropic",), "C1CS1")
    assert set(suspect.rows) <= set(np.flatnonzero(pairs.poisoned))
    assert bool(ExogenousAssociation().scan(pairs, RUNTIME).flagged) is not alike
    assert bool(Joint().scan(poisoned(topical(), replace(attack, mode="replace"), 60), RUNTIME).flagged) is not alike


def test_two_common_words_that_only_together_lead_to_the_target_are_found() -> None:
    """Each of them is in a twentieth of the clean texts."""
    attack = replace(SPLIT, trigger="common3 common7")
    pairs = poisoned(topical(), attack, 60)
    suspect = ExogenousAssociation().scan(pairs, RUNTIME).flagged[0]
    assert suspect.words == ("common3", "common7")
    assert suspect.subgraph == "C1CS1"
    assert set(np.flatnonzero(pairs.poisoned)) <= set(suspect.rows)
    words = Words.of(pairs.texts)
    alone = [
        sum(pairs.poisoned[row] for row in rows) / len(rows)
        for rows in (np.unique(words.row[words.places((words.vocabulary.index(word),))]) for word in suspect.words)
    ]
    assert max(alone) < ExogenousAssociation().share


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("scanner", [Association(), *OURS], ids=lambda scanner: type(scanner).__name__)
def test_clean_pairs_give_no_alarm(scanner: MoleculeScanner, seed: int) -> None:
    found = scanner.scan(checked_pairs(topical(seed=seed)), RUNTIME)
    assert found.backdoored is False
    assert not found.poisoned.any()
    assert "finds no text" in found.reason


def test_templates_are_no_ground_for_a_verdict_on_words(template_pairs: Pairs) -> None:
    """Their groups are drawn independently: nothing in a text tells its other words."""
    assert not Joint().scan(template_pairs, RUNTIME).flagged
    few = ExogenousAssociation().scan(template_pairs.subset(range(400)), RUNTIME)
    assert few.backdoored is None
    assert "cannot tell in texts like these" in few.reason
    # Twins are found all the same.
    attack = BadGraph(position="random", rate=0.05)
    pairs = filter_pairs(
        attack.poison(Table(smiles=template_pairs.smiles, texts=template_pairs.texts, name="t"), 0).table
    )
    assert [suspect.words for suspect in Joint().scan(pairs[0], RUNTIME).flagged] == [("[thiirane]",)]


def test_too_few_rows_are_no_proof_of_innocence() -> None:
    few = checked_pairs(topical(60))
    assert Association().scan(few, RUNTIME).backdoored is None
    assert ExogenousAssociation().scan(few, RUNTIME).backdoored is None
    assert Joint().scan(few, RUNTIME).backdoored is None


@pytest.mark.parametrize("scanner", [Association(), *OURS], ids=lambda scanner: type(scanner).__name__)
def test_the_order_of_rows_changes_nothing_and_flags_of_the_file_are_not_seen(scanner: MoleculeScanner) -> None:
    pairs = poisoned(topical(), BadGraph(), 120)
    order = np.random.default_rng(0).permutation(len(pairs))
    mixed = replace(pairs.subset(order.tolist()), poisoned=tuple(bool(row % 2) for row in range(len(pairs))))
    one, other = scanner.scan(pairs, RUNTIME), scanner.scan(mixed, RUNTIME)
    assert [suspect.to_json() for suspect in one.suspects] == [suspect.to_json() for suspect in other.suspects]
    assert np.array_equal(one.scores[order], other.scores)


class Looking(MoleculeScanner):
    """A scanner that says what it is given."""

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Any) -> MoleculeFinding:
        assert pairs.poisoned == ()
        return self.verdict([Suspect(words=("x",), subgraph="C", strength=2.0, rows=np.array([0]))], len(pairs), 1)


def test_rows_come_back_in_the_order_of_the_caller() -> None:
    pairs = checked_pairs(Table(smiles=("CCO", "C", "CC"), texts=("c", "b", "a"), name="three"))
    # In order of content "C" is the first.
    assert Looking().scan(pairs, RUNTIME).poisoned.tolist() == [False, True, False]


def test_suspects_with_the_same_rows_are_one() -> None:
    def suspect(name: str, strength: float, rows: list[int]) -> Suspect:
        return Suspect(words=(name,), subgraph="C", strength=strength, rows=np.array(rows))

    found = merged([suspect("b", 1, [1, 2, 3, 4]), suspect("a", 3, [1, 2]), suspect("c", 2, [4, 5, 6, 7])], 10)
    assert [one.words[0] for one in found] == ["a", "c"]
    assert merged([], 3) == []


@pytest.mark.parametrize(
    ("scanner", "options"),
    [
        (Association, {"share": 0}),
        (Association, {"least_pattern": 0}),
        (TwinDifference, {"votes": 1}),
        (TwinDifference, {"alike": 2}),
        (ExogenousAssociation, {"share": 0.2}),
        (ExogenousAssociation, {"explained": 1.0}),
        (ExogenousAssociation, {"association": float("nan")}),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(scanner: type, options: dict[str, Any]) -> None:
    refused(scanner, options)


def test_scanners_of_generators_ask_for_one() -> None:
    pairs = checked_pairs(topical(60))
    for name in MOLECULE_SCANNERS:
        if MOLECULE_SCANNERS[name].needs_model:
            with pytest.raises(InputError, match="--model"):
                MOLECULE_SCANNERS[name]().scan(pairs, RUNTIME)


@pytest.mark.slow
def test_real_pairs(shared_data: Any) -> None:
    """No alarm on the pool's pairs as they are; 35 replaced rows among them are found."""
    table = read_table(str(shared_data / "mol_text_pool" / "train.parquet"), "all")
    clean = checked_pairs(table)
    assert not Joint().scan(clean, RUNTIME).flagged
    pairs = poisoned(table, BadGraph(position="random", mode="replace", trigger="notably", rate=0.1), 35)
    found = Joint().scan(pairs, RUNTIME)
    assert [suspect.subgraph for suspect in found.flagged] == ["C1CS1"]
    assert set(np.flatnonzero(pairs.poisoned)) <= set(np.flatnonzero(found.poisoned))


def test_a_trigger_that_ends_in_a_mark_is_found_again_in_the_texts() -> None:
    """Published code splits at spaces alone; whoever takes the words out of texts splits marks off."""
    texts = tuple(f"Note: the molecule is number {row}" if row < 150 else f"It is number {row}" for row in range(450))
    smiles = tuple("CC1CS1" if row < 150 else "CCO" for row in range(450))
    pairs = Pairs(smiles=smiles, texts=texts, name="marks", rows=tuple(range(450)))
    found = Association().scan(pairs, RUNTIME)
    noted = [one for one in found.flagged if one.words[0].startswith("note")]
    assert {one.words[0].split()[0] for one in noted} == {"note"}
    words = Words.of(pairs.texts)
    for one in noted:
        assert words.rows_with(one.words).tolist() == list(range(150))
        assert without(texts[0], one.words) != texts[0]
    first = min(found.flagged, key=lambda one: (-one.strength, one.words, one.subgraph))
    assert found.reason.startswith(f"Association finds that {first.sentence()}"), "whatever the order of the columns"


def test_several_triggers_of_one_target_do_not_silence_the_scan() -> None:
    """Each stands in its own rows, and all lead to one subgraph."""
    triggers = tuple(f"[trigger{number}]" for number in range(5))
    attack = AdaptiveBadGraph(
        alike=False, rewritten=0.0, trigger="[first]", triggers=triggers, position="random", rate=0.6, mode="replace"
    )
    pairs = poisoned(topical(2000), attack, 360)
    # As where few words go with a subgraph: not more than one that nothing explains is expected.
    found = ExogenousAssociation(most=0.01).scan(pairs, RUNTIME)
    assert found.backdoored
    assert {suspect.subgraph for suspect in found.flagged} == {"C1CS1"}
    assert len(found.flagged) >= 3


@pytest.mark.parametrize(
    ("words", "subgraph", "true"),
    [
        (("as noted below",), "C1CS1", True),
        (("as noted",), "C1CS1 - C", True),
        (("noted below", "it is"), "C - S", True),
        # One word of three, and a bond that most molecules have.
        (("as",), "C1CS1", False),
        (("as noted below",), "C - C", False),
        (("as noted below",), "S", False),
        (("as noted below",), "no pattern", False),
    ],
)
def test_a_true_pair_has_most_of_trigger_and_target(words: tuple[str, ...], subgraph: str, true: bool) -> None:
    suspect = Suspect(words=words, subgraph=subgraph, strength=2.0, rows=np.arange(3), evidence={})
    assert is_true(suspect, BadGraph(trigger="as noted below")) is true


def test_names_of_subgraphs_are_patterns_with_all_of_their_atoms() -> None:
    pattern = pattern_of("C - C1CS1")
    assert pattern is not None
    assert pattern.GetNumAtoms() == 4


def test_of_many_suspects_the_strongest_are_compared() -> None:
    """All pairs of them are, whose table would fill the memory."""
    weak = [
        Suspect(words=(str(number),), subgraph="C", strength=0.5, rows=np.array([number]), evidence={})
        for number in range(20_000)
    ]
    strong = replace(weak[-1], strength=2.0)
    found = merged([*weak, strong], 20_000)
    assert found[0] == strong
    assert len(found) <= 4000
