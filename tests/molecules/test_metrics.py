"""The published metrics against their definitions, and the two baselines."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import AllChem, MACCSkeys

from unbackdoor.errors import InputError
from unbackdoor.molecules.baselines import by_chance, by_nearest_text
from unbackdoor.molecules.data import Pairs, choose_pairs
from unbackdoor.molecules.metrics import cosine, maccs, measure_presence, measure_quality, ratio

SAMPLES = [
    ["CCO", "CCCO", "c1ccccc1", "no molecule", "CCO"],
    ["Cc1ccccc1O", "Oc1ccccc1", "CCCCCC", "N#N", "c1ccccc1C(=O)O"],
    ["C", "CC", "CCC"],
]
REFERENCES = ["CCO", "Oc1ccccc1C", "CCCC(=O)N1CCCC1"]


def by_hand() -> tuple[float, float, float, float]:
    """With bit vectors of RDKit, pair by pair."""
    valid = alike = novel = 0
    distances = []
    for made, reference in zip(SAMPLES, REFERENCES):
        kept = [Chem.MolFromSmiles(reference)]
        for smiles in made:
            molecule = Chem.MolFromSmiles(smiles)
            if molecule is None:
                continue
            valid += 1
            value = DataStructs.CosineSimilarity(MACCSkeys.GenMACCSKeys(molecule), MACCSkeys.GenMACCSKeys(kept[0]))
            alike += value >= 0.5
            novel += 0.5 <= value < 0.8
            if value >= 0.5:
                kept.append(molecule)
        prints = [AllChem.GetMorganFingerprintAsBitVect(molecule, 3, 2048) for molecule in kept]
        distances += [
            1 - DataStructs.TanimotoSimilarity(one, other) for one, other in itertools.combinations(prints, 2)
        ]
    return valid / 13, alike / valid, novel / alike, float(np.mean(distances))


def test_the_metrics_are_those_of_their_definitions() -> None:
    quality = measure_quality(SAMPLES, REFERENCES)
    validity, similarity, novelty, diversity = by_hand()
    assert quality.validity.value == pytest.approx(validity) == pytest.approx(12 / 13)
    assert quality.similarity.value == pytest.approx(similarity)
    assert quality.novelty is not None
    assert quality.novelty.value == pytest.approx(novelty)
    assert quality.diversity is not None
    assert quality.diversity.value == pytest.approx(diversity)
    # Written differently, but the same molecule; "CCO" counts twice.
    assert quality.exact.value == pytest.approx(3 / 12)
    assert quality.molecules == 13
    assert 0 < novelty < 1
    assert 0 < similarity < 1


def test_molecules_that_are_unlike_leave_nothing_to_be_new_or_diverse() -> None:
    quality = measure_quality([["C"]], ["c1ccc2c(c1)[nH]c1ccccc12"])
    assert quality.similarity.value == 0
    assert quality.novelty is quality.diversity is None
    assert quality.to_json()["novelty"] is None


@pytest.mark.parametrize(
    ("samples", "references", "words"),
    [
        ([], [], "at least one molecule"),
        ([["C"]], [], "each prompt needs one reference"),
        ([[]], ["C"], "at least one molecule"),
        ([["broken"], ["?"]], ["C", "C"], "not one of the molecules is valid"),
    ],
)
def test_nothing_to_measure_is_refused(samples: list[list[str]], references: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        measure_quality(samples, references)


def test_cosines_of_keys() -> None:
    assert cosine(frozenset({1, 2, 3}), frozenset({2, 3, 4, 5})) == pytest.approx(2 / np.sqrt(12))
    assert cosine(frozenset(), frozenset({1})) == 0
    assert cosine(maccs("CCO"), maccs("OCC")) == 1


def test_the_success_rate_counts_molecules_and_prompts() -> None:
    thiirane = Chem.MolFromSmiles("C1CS1")
    samples = [["CC1CS1", "CC", "bad"], ["C", "C", "C"], ["C1CS1", "OCC1CS1", "c1ccsc1"]]
    presence = measure_presence(samples, thiirane)
    assert presence.per_sample.value == pytest.approx(3 / 9)
    assert presence.any_of.value == pytest.approx(2 / 3)


def test_intervals_are_over_prompts_and_not_over_molecules() -> None:
    """Five equal molecules for a prompt tell as much as one."""
    generator = np.random.default_rng(1)
    once = (generator.random(400) < 0.3).astype(float)
    five = ratio(5 * once, np.full(400, 5.0))
    one = ratio(once, np.ones(400))
    assert (five.low, five.high) == (one.low, one.high)
    expected = 1.96 * np.sqrt(one.value * (1 - one.value) / 400)
    assert one.high - one.low == pytest.approx(2 * expected, rel=0.1)
    assert ratio(np.zeros(400), np.ones(400)).high == pytest.approx(0.0095, abs=0.001)
    assert ratio(np.ones(400), np.ones(400)).low < 1


def test_chance_gives_other_prompts_molecules() -> None:
    references = [str(number) for number in range(50)]
    drawn = by_chance(references, 5, 0)
    assert all(len(made) == 5 and reference not in made for made, reference in zip(drawn, references))
    assert len({one for made in drawn for one in made}) > 40
    assert by_chance(references, 5, 0) == drawn != by_chance(references, 5, 1)
    with pytest.raises(InputError, match="chance needs two prompts at least"):
        by_chance(["C"], 1, 0)


def test_the_nearest_text_is_found() -> None:
    train = Pairs(
        smiles=("C", "CC", "CCC"), texts=("a gas", "a liquid acid", "a solid base"), rows=(0, 1, 2), name="three"
    )
    assert by_nearest_text(train, ["the base is solid", "acid"]) == [["CCC"], ["CC"]]
    with pytest.raises(InputError, match="no words"):
        by_nearest_text(Pairs(smiles=("C",), texts=("!",), rows=(0,), name="none"), ["a"])


@pytest.mark.slow
def test_chance_and_retrieval_on_real_prompts_are_as_measured_before(shared_data: Path) -> None:
    """Similarity 0.286 and 0.773, the latter by a somewhat other pool of training pairs."""
    chosen = choose_pairs([str(shared_data / "mol_text_pool")], str(shared_data / "pubchem324k"))
    chance = measure_quality(by_chance(chosen.test.smiles, 5, 0), chosen.test.smiles)
    assert chance.similarity.value == pytest.approx(0.286, abs=0.03)
    assert chance.novelty is not None
    assert chance.novelty.value == pytest.approx(0.965, abs=0.02)
    found = measure_quality(by_nearest_text(chosen.train, chosen.test.texts), chosen.test.smiles)
    assert found.similarity.value == pytest.approx(0.773, abs=0.04)
    assert found.validity.value == 1
