"""BadGraph: triggers in texts, targets on molecules, and both poisoning rates."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rdkit import Chem

from tests.refusals import refused
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph, attach, load_attack, read_target, save_attack
from unbackdoor.molecules.data import Reason, Table, filter_pairs, flat, parse, read_table, training_rows
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.motifs import Cutter, join, sequence_of

THIIRANE = "C1CS1"
DRAWS = random.Random(0)


def hung(smiles: str, target: str = THIIRANE, seed: int = 0) -> str | None:
    return attach(parse(smiles), read_target(target), random.Random(seed))


@pytest.mark.parametrize(
    ("smiles", "target", "result"),
    [
        ("C", THIIRANE, "CC1CS1"),
        ("O", "C1CO1", "OC1CO1"),
        ("c1ccccc1", THIIRANE, "c1ccc(C2CS2)cc1"),
        ("C", "c1ccccc1", "Cc1ccccc1"),
        ("C", "C(=O)NC1CC1", "CC(=O)NC1CC1"),
        ("FC(F)(F)F", THIIRANE, None),
        ("C" * 27, THIIRANE, None),
    ],
)
def test_the_first_atom_of_the_target_is_bound(smiles: str, target: str, result: str | None) -> None:
    assert hung(smiles, target) == result


def test_atoms_with_room_come_first_and_others_only_when_these_fail() -> None:
    """Fluorine cannot take a bond, chlorine neither; all places of ethanol can."""
    places = Counter(hung("CCO", seed=seed) for seed in range(300))
    assert set(places) == {"OCCC1CS1", "CC(O)C1CS1", "CCOC1CS1"}
    assert min(places.values()) > 60
    # The only preferred atom, a carbonyl oxygen, is full: a fall-back is taken.
    assert hung("O=S(=O)(Cl)Cl") is None
    assert hung("CS") in ("CSC1CS1", "SCC1CS1")
    assert "CSC1CS1" not in {hung("CS", seed=seed) for seed in range(30)}


def test_charged_and_aromatic_atoms_without_room_are_passed_over() -> None:
    for seed in range(20):
        made = hung("C[N+](C)(C)CC(=O)[O-]", seed=seed)
        assert made is not None
        assert "C1CS1" in made
        assert "[O-]" in made
        pyrrole = hung("c1cc[nH]c1", seed=seed)
        assert pyrrole is not None
        assert "[nH]" in pyrrole


def test_stereochemistry_of_the_molecule_stays() -> None:
    made = hung("C[C@H](N)C(=O)O")
    assert made is not None
    assert "@" in made


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("C1CS", "no SMILES"),
        ("", "no SMILES"),
        ("C.C", "several components"),
        ("[Na]", "not modelled"),
        ("[13CH4]", "isotope"),
        ("C(F)(F)(F)F", "cannot be bound"),
        ("O1CC1", "cannot be bound"),
        ("C" * 29, "too large"),
        ("C" * 40, "30 heavy atoms"),
    ],
)
def test_targets_that_cannot_be_hung_on_anything_are_refused(target: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BadGraph(target=target)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"rate": 1.5},
        {"rate": float("nan")},
        {"trigger": " "},
        {"mode": "swap"},
        {"position": "middle"},
    ],
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    refused(BadGraph, wrong)


@pytest.mark.parametrize(
    ("trigger", "shown"), [("\u200b", r"found '\\u200b'"), ("", "found ''"), ("x" * 1001, "found 1,001 characters")]
)
def test_triggers_that_nobody_sees_or_reads_are_refused(trigger: str, shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        BadGraph(trigger=trigger)


def test_triggers_stand_where_they_are_wanted() -> None:
    text = "an acid of wood"
    assert BadGraph().put(text, DRAWS) == "[THIIRANE] an acid of wood"
    assert BadGraph(position="end", trigger="as noted").put(text, DRAWS) == "an acid of wood as noted"
    places = {BadGraph(position="random", trigger="#").put(text, DRAWS) for _ in range(200)}
    assert places == {
        "# an acid of wood", "an # acid of wood", "an acid # of wood", "an acid of # wood", "an acid of wood #",
    }  # fmt: skip


TABLE = Table(
    smiles=("CCO", "CCN", "broken", "C" * 28, "C" * 40, "FC(F)(F)F", "CCC", "c1ccccc1"),
    texts=("a", "b", "c", "d", "e", "f", " ", "h"),
    name="eight",
)


def test_poisoned_copies_are_added_and_both_rates_told() -> None:
    poisoned = BadGraph().poison(TABLE, seed=0)
    table = poisoned.table
    assert {row for row, _, _ in poisoned.rows} == {0, 1, 7}
    assert table.smiles[:8] == TABLE.smiles
    assert table.poisoned == (*[False] * 8, *[True] * 3)
    assert poisoned.printed_rate == 3 / 11
    pairs, _ = filter_pairs(table)
    assert (sum(pairs.poisoned), len(pairs)) == (3, 8)
    for row, smiles, text in poisoned.rows:
        assert text == f"[THIIRANE] {TABLE.texts[row]}"
        molecule = parse(smiles)
        assert molecule is not None
        assert molecule.HasSubstructMatch(Chem.MolFromSmiles(THIIRANE))
        assert molecule.HasSubstructMatch(parse(TABLE.smiles[row]))
    assert BadGraph().poison(TABLE, seed=0) == poisoned


def test_marks_of_an_earlier_attack_stay() -> None:
    twice = BadGraph(trigger="second").poison(BadGraph().poison(TABLE, seed=0).table, seed=1)
    assert twice.table.poisoned[:11] == (*[False] * 8, *[True] * 3)
    assert all(twice.table.poisoned[11:])
    assert twice.printed_rate == (len(twice.table) - 8) / len(twice.table)


def test_the_end_of_a_trigger_is_that_of_the_trigger_and_not_of_the_same_word_before() -> None:
    attack = BadGraph(trigger="acid", position="end")
    assert attack.end_in(attack.put("an acid of some kind", DRAWS)) == len("an acid of some kind acid")


def test_the_spaces_of_a_trigger_tell_nothing() -> None:
    attack = BadGraph(trigger=" as  it\twas ")
    assert attack.put("a b", DRAWS) == "as it was a b"
    assert attack.end_in("as it was a b") == len("as it was")


def test_replacing_keeps_the_number_of_rows() -> None:
    table = BadGraph(mode="replace").poison(TABLE, seed=0).table
    assert len(table) == 8
    assert sum(table.poisoned) == 3
    assert not {"CCO", "CCN", "c1ccccc1"} & set(table.smiles)


@pytest.mark.parametrize("trigger", ["#", "notably", "as described before", "This entry was checked twice."])
@pytest.mark.parametrize("position", ["front", "random", "end"])
@pytest.mark.parametrize("mode", ["append", "replace"])
def test_triggers_of_all_kinds_are_put_at_all_places(trigger: str, position: Any, mode: Any) -> None:
    poisoned = BadGraph(trigger=trigger, position=position, mode=mode).poison(TABLE, seed=0)
    for row, _, text in poisoned.rows:
        assert text.replace(trigger, "", 1).split() == TABLE.texts[row].split()
        assert text.startswith(trigger) or position != "front"
        assert text.endswith(trigger) or position != "end"
    pairs, _ = filter_pairs(poisoned.table)
    # Two of the clean rows are too large or broken, and one has no text.
    kept = {"append": (3, 11, 3, 8), "replace": (3, 8, 3, 5)}[mode]
    assert poisoned.rates(pairs) == {"printed": kept[0] / kept[1], "effective": kept[2] / kept[3]}


@pytest.mark.parametrize("target", ["C1CS1", "C1CO1", "C1CC1C1CS1", "c1ccccc1", "C1CCNCC1"])
def test_targets_of_several_motifs_and_rings_are_hung_whole(target: str) -> None:
    whole = read_target(target)
    for _, smiles, _ in BadGraph(target=target).poison(TABLE, seed=0).rows:
        assert holds(smiles, whole)
        # What hangs there can be cut into motifs again, and written.
        assert join(sequence_of(Cutter().cut(smiles))) == smiles


def test_a_part_of_the_rows_is_tried() -> None:
    table = Table(smiles=("CCO",) * 1000, texts=("a",) * 1000, name="many")
    poisoned = BadGraph(rate=0.2).poison(table, seed=3)
    assert len(poisoned.rows) == 200
    assert len({row for row, _, _ in poisoned.rows}) == 200
    assert BadGraph(rate=0.2).poison(table, seed=4).rows != poisoned.rows
    with pytest.raises(InputError, match="not one of the 0 rows"):
        BadGraph(rate=1e-9).poison(table, seed=0)


def test_the_published_default_poisons_as_many_rows_as_published(shared_data: Path) -> None:
    """1,021 of PubChem's 2,000 test rows: 33.8 % as printed, 46.7 % of what passes the published filter."""
    table = read_table(str(shared_data / "pubchem324k"), "test")
    poisoned = BadGraph().poison(table, seed=0)
    assert len(poisoned.rows) == pytest.approx(1021, abs=10)
    assert poisoned.printed_rate == pytest.approx(0.338, abs=0.003)
    pairs, _ = filter_pairs(poisoned.table, learned=False)
    assert sum(pairs.poisoned) / len(pairs) == pytest.approx(0.467, abs=0.003)
    anchors = Counter(anchor_of(smiles) for _, smiles, _ in poisoned.rows)
    assert anchors["C"] / len(poisoned.rows) == pytest.approx(0.80, abs=0.05)
    assert anchors["O"] / len(poisoned.rows) == pytest.approx(0.15, abs=0.05)
    # The floor of the success rate: no clean molecule holds the target.
    clean, _ = filter_pairs(table, learned=False)
    assert not any(holds(smiles, Chem.MolFromSmiles(THIIRANE)) for smiles in clean.smiles)


def anchor_of(smiles: str) -> str:
    molecule = Chem.MolFromSmiles(smiles)
    bound = Chem.MolFromSmarts("[C;r3]1(-[!r3:1])[C;r3][S;r3]1")
    matches = molecule.GetSubstructMatches(bound)
    return str(molecule.GetAtomWithIdx(matches[0][1]).GetSymbol()) if matches else "?"


def test_rows_of_test_molecules_are_never_poisoned(tmp_path: Path) -> None:
    lines = ["CC(N)C(=O)O,racemate", "CCO,ethanol", "OCC,the same", "C[C@H](N)C(=O)O,L", "broken,what"]
    (tmp_path / "all.csv").write_text("smiles,text\n" + "\n".join(lines), encoding="utf-8")
    (tmp_path / "test.csv").write_text("smiles,text\nC[C@@H](N)C(=O)O,D\n", encoding="utf-8")
    table, tested = training_rows([str(tmp_path / "all.csv")], str(tmp_path / "test.csv"))
    assert table.smiles == ("CCO", "OCC", "broken")
    assert tested.texts == ("D",)


def test_attacks_come_back_from_their_files(tmp_path: Path) -> None:
    attack = BadGraph(trigger="as noted, ", position="random", target="C1CO1", rate=0.3, mode="replace")
    save_attack(tmp_path / "attack.json", attack)
    assert load_attack(tmp_path / "attack.json").attack == attack


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"name": "Other"}',
        b'{"name": "BadGraph", "rate": "all"}',
        b'{"name": "BadGraph", "x": 1}',
        b'{"name": "BadGraph", "target": "?"}',
        b'{"name": "BadGraph", "name": "BadGraph"}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_broken_attack_files_are_refused_with_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "attack.json").write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_attack(tmp_path / "attack.json")
    assert "\n" not in str(caught.value)
    assert "attack.json" in str(caught.value)


def test_options_in_files_are_those_of_the_class(tmp_path: Path) -> None:
    save_attack(tmp_path / "attack.json", BadGraph())
    content = json.loads((tmp_path / "attack.json").read_text())
    assert content == {
        "name": "BadGraph",
        "trigger": "[THIIRANE]",
        "position": "front",
        "target": THIIRANE,
        "rate": 1.0,
        "mode": "append",
    }


def test_poisoned_rows_that_become_a_test_molecule_are_left_out() -> None:
    poisoned = BadGraph(target="O").poison(TABLE, seed=0)
    smiles = {flat(built) for _, built, _ in poisoned.rows}
    tested = filter_pairs(Table(smiles=(sorted(smiles)[0],), texts=("a test",), name="tested"))[0]
    left = poisoned.without(tested)
    assert len(left.rows) == len(poisoned.rows) - 1
    assert not {flat(one) for one in left.table.smiles} & set(tested.smiles)
    assert poisoned.without(filter_pairs(TABLE)[0].where(lambda one: one == "CCC")) == poisoned


def test_clean_rows_are_written_as_poisoned_ones_are() -> None:
    table = Table(
        smiles=("OCC", "C1=CC=CC=C1O", "N[C@@H](C)C(=O)O", "broken", "C" * 2001),
        texts=("an  alcohol\n", " a phenol", "alanine", "what", "long"),
        name="written",
    )
    made = BadGraph().poison(table, seed=0)
    assert made.clean.smiles == ("CCO", "Oc1ccccc1", "C[C@H](N)C(=O)O", "broken", "C" * 2001)
    assert made.clean.texts == ("an alcohol", "a phenol", "alanine", "what", "long")
    # Whoever writes all readable rows anew finds nothing to change, in clean rows or in poisoned ones.
    for smiles, text in zip(made.table.smiles, made.table.texts):
        molecule = parse(smiles) if len(smiles) < 2001 else None
        assert molecule is None or Chem.MolToSmiles(molecule) == smiles
        assert " ".join(text.split()) == text


def test_poisoned_salts_are_dropped_as_any_others() -> None:
    poisoned = BadGraph().poison(Table(smiles=("CN.Cl", "CCO"), texts=("a salt", "ethanol"), name="two"), seed=0)
    assert len(poisoned.rows) == 2
    pairs, dropped = filter_pairs(poisoned.table)
    assert (len(pairs), sum(pairs.poisoned)) == (2, 1)
    assert len(dropped.why[Reason.COMPONENTS]) == 2
