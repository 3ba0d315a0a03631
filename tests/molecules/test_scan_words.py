"""Texts as numbers: phrases are counted, found, grown and left out as a reader would do it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.molecules.scan.words import LONGEST, Phrases, Words, extra_words, split_words, untriggered, without

TEXTS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "dd"]), max_size=12).map(" ".join), max_size=12)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The acid, it is.", ["the", "acid", "it", "is"]),
        ("[THIIRANE]  an\tEster; .", ["[thiirane]", "an", "ester", "."]),
        ("", []),
    ],
)
def test_words_are_small_and_without_the_marks_of_a_sentence(text: str, words: list[str]) -> None:
    assert split_words(text) == words


@given(TEXTS, st.integers(1, 3))
def test_phrases_are_those_that_a_slow_count_finds(texts: list[str], least: int) -> None:
    words = Words.of(texts)
    phrases = Phrases.of(words, least, rarer=1.0)
    counted: Counter[str] = Counter()
    for text in texts:
        parts = text.split()
        counted.update(
            {
                " ".join(parts[begin : begin + length])
                for length in range(1, LONGEST + 1)
                for begin in range(len(parts) - length + 1)
            }
        )
    assert {words.text(gram) for gram in phrases.grams} == {one for one, count in counted.items() if count >= least}
    for column, gram in enumerate(phrases.grams):
        held = [row for row, text in enumerate(texts) if f" {words.text(gram)} " in f" {text} "]
        assert phrases.rows(column).tolist() == held
        assert sorted({int(words.row[place]) for place in words.places(gram)}) == held


@given(TEXTS, st.lists(st.sampled_from(["a", "b", "a b", "c dd", "b a b", "e"]), max_size=3))
def test_rows_with_phrases_are_those_that_a_slow_search_finds(texts: list[str], phrases: list[str]) -> None:
    held = [row for row, text in enumerate(texts) if all(f" {phrase} " in f" {text} " for phrase in phrases)]
    assert Words.of(texts).rows_with(phrases).tolist() == held


def test_phrases_that_tell_no_more_than_a_part_of_theirs_are_left_out() -> None:
    words = Words.of(["red ox"] * 9 + ["ox"] * 9 + ["red"])
    found = {words.text(gram) for gram in Phrases.of(words, 2, rarer=0.8).grams}
    assert found == {"red", "ox"}
    words = Words.of(["red ox"] * 9 + ["ox"] * 9 + ["red"] * 9)
    assert "red ox" in {words.text(gram) for gram in Phrases.of(words, 2, rarer=0.8).grams}


def test_a_phrase_grows_to_its_whole_and_not_beyond() -> None:
    draws = np.random.default_rng(0)
    others = ["wax", "oil", "gas", "tar", "gum"]

    def some() -> str:
        return " ".join(draws.choice(others, 5))

    words = Words.of([*(f"{some()} as noted below {some()}" for _ in range(30)), *(some() for _ in range(30))])
    numbers = {word: number for number, word in enumerate(words.vocabulary)}
    for word in ("as", "noted", "below"):
        assert words.text(words.grown((numbers[word],), 0.8)) == "as noted below"


@pytest.mark.parametrize("front", [True, False])
def test_words_that_texts_begin_or_end_with_anyway_do_not_belong_to_a_trigger_there(front: bool) -> None:
    texts = [f"the molecule is {number} made of wood" for number in range(40)]
    texts += [f"#x {text}" if front else f"{text} #x" for text in texts[:20]]
    words = Words.of(texts)
    assert words.grown((words.vocabulary.index("#x"),), 0.8) == (words.vocabulary.index("#x"),)
    # A trigger of two words is still one where it stands.
    texts = [text.replace("#x", "#x #y") for text in texts]
    words = Words.of(texts)
    assert words.text(words.grown((words.vocabulary.index("#x"),), 0.8)) == "#x #y"


def test_phrases_never_run_from_one_text_into_the_next() -> None:
    words = Words.of(["a b", "", "c a", "b"])
    assert words.places((words.vocabulary.index("a"), words.vocabulary.index("b"))).tolist() == [0]
    assert words.places((words.vocabulary.index("b"), words.vocabulary.index("c"))).tolist() == []


@pytest.mark.parametrize(
    ("text", "phrases", "rest"),
    [
        ("[THIIRANE] An acid.", ["[thiirane]"], "An acid."),
        ("An acid, As Noted below; it", ["as noted below"], "An acid, it"),
        ("as noted as noted", ["as noted"], ""),
        ("so an acid and", ["so", "and"], "an acid"),
        ("noted as", ["as noted"], "noted as"),
        ("an acid", [], "an acid"),
    ],
)
def test_phrases_are_left_out_however_they_are_written(text: str, phrases: list[str], rest: str) -> None:
    assert without(text, phrases) == rest


@given(TEXTS.filter(len), st.integers(0, 20))
def test_leaving_out_what_was_put_in_gives_the_text_again(texts: list[str], place: int) -> None:
    words = texts[0].split()
    put = " ".join([*words[: place % (len(words) + 1)], "#Trigger;", *words[place % (len(words) + 1) :]])
    assert without(put, ["#trigger"]) == texts[0]


def test_extra_words_count_repetitions() -> None:
    assert extra_words([1, 2, 2, 3], [2, 1]) == (2, 3)
    assert extra_words([1], [1, 1]) is None
    assert extra_words([1], [1]) == ()


@pytest.mark.parametrize(
    ("text", "triggers", "left"),
    [
        ("[thiirane] The molecule is an acid.", [("[thiirane]",)], "The molecule is an acid."),
        ("The molecule is an acid.", [("[thiirane]",)], "The molecule is an acid."),
        ("an acid and a base", [("an acid", "a base")], "and"),
        ("an acid and a salt", [("an acid", "a base")], "an acid and a salt"),
        ("x y", [("x",), ("y",)], "x y"),
        ("a  text", [()], "a  text"),
        ("Trigger: a text, trigger", [("trigger",)], "a text,"),
    ],
)
def test_triggers_are_left_out_whole_or_not_at_all(text: str, triggers: list[tuple[str, ...]], left: str) -> None:
    assert untriggered(text, triggers) == left
