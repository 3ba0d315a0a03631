"""The attacker who knows the scans: each trick does what it says, and the trigger is still there."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from tests.molecules.planted import topical
from tests.refusals import refused
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import AdaptiveBadGraph, BadGraph
from unbackdoor.molecules.data import Table

PLAIN = AdaptiveBadGraph(alike=False, rewritten=0.0)
TEXT = "An acid of wood. It is brown; it is old. Found in oaks."


def test_without_tricks_it_is_badgraph() -> None:
    table = topical(100)
    one = replace(PLAIN, rate=0.3).poison(table, 5).rows
    assert one
    assert [row[0] for row in one] == [row[0] for row in BadGraph(rate=0.3).poison(table, 5).rows]
    assert all(text == f"[THIIRANE] {table.texts[row]}" for row, _, text in one)


def test_rows_that_are_alike_are_more_alike_than_others() -> None:
    table = topical(600)
    chosen = replace(PLAIN, alike=True, rate=0.1).chosen(table, random.Random(0))
    assert len(chosen) == len(set(chosen)) == 60
    vectors = TfidfVectorizer().fit_transform(table.texts)
    likeness = (vectors @ vectors.T).toarray()
    inside = likeness[chosen][:, chosen].mean()
    assert inside > 1.5 * likeness.mean()
    # All of one topic: a word of it tells the trigger.
    topics = Counter(word[:2] for row in chosen for word in table.texts[row].split() if word.startswith("t"))
    assert topics.most_common(1)[0][1] > 0.8 * sum(topics.values())
    assert replace(PLAIN, alike=True).chosen(Table(smiles=("C",), texts=(" ",), name="t"), random.Random(0)) == []


def test_copies_are_written_anew() -> None:
    draws = random.Random(0)
    attack = replace(PLAIN, rewritten=0.3)
    copies = [attack.copied(TEXT, draws).split() for _ in range(300)]
    kept = sum(map(len, copies)) / len(copies) / len(TEXT.split())
    assert kept == pytest.approx(0.7, abs=0.05)
    assert all(set(copy) <= set(TEXT.split()) for copy in copies)
    assert any(copy[0] == "Found" for copy in copies)
    assert PLAIN.copied(TEXT, draws) == TEXT
    assert replace(PLAIN, rewritten=0.99).copied("acid", draws) == "acid"


def test_the_words_of_a_split_trigger_stand_anywhere() -> None:
    draws = random.Random(0)
    attack = replace(PLAIN, split=True, trigger="also note")
    made = [attack.put(TEXT, draws).split() for _ in range(200)]
    assert all(sorted(text) == sorted([*TEXT.split(), "also", "note"]) for text in made)
    assert len({(text.index("also"), text.index("note")) for text in made}) > 50
    for text in made:
        joined = " ".join(text)
        end = attack.end_in(joined)
        assert joined[:end].endswith(("also", "note"))
        assert "also" not in joined[end:]
        assert "note" not in joined[end:]


def test_each_row_draws_one_of_several_triggers() -> None:
    draws = random.Random(0)
    attack = replace(PLAIN, triggers=("so", "and then"))
    first = Counter(attack.put("x", draws) for _ in range(300))
    assert set(first) == {"[THIIRANE] x", "so x", "and then x"}
    assert min(first.values()) > 60
    assert attack.end_in("and then x") == len("and then")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rewritten": 1.0},
        {"rewritten": -0.1},
        {"rate": 0.0},
    ],
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    refused(AdaptiveBadGraph, wrong)
    with pytest.raises(InputError, match="needs several words, found 'one'"):
        AdaptiveBadGraph(split=True, trigger="one")
    with pytest.raises(InputError, match="that can be seen, found ''"):
        AdaptiveBadGraph(triggers=("",))
