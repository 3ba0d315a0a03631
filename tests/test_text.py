"""Strangers' text is harmless once cleaned, and plain text stays as it is."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unbackdoor.text import clean_text, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain Äé 猫 🐈 <b>&", "plain Äé 猫 🐈 <b>&"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b[38;5;196mred", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;a window title\x07red", "red"),
        ("\x1b]8;;https://x.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bcred", "\x1bcred".replace("\x1b", "")),
        ("one\r\ntwo\tthree\u2028four", "one two three four"),
        ("a\x00b\x08c\x7fd\x85e", "abcd e"),
        ("gpj.\u202eexe\u202c", "gpj.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("half\ud800", "half"),
        ("no\ufffe\uffff\U0001fffe character", "no character"),
    ],
)
def test_plain_text_keeps_letters_and_loses_terminal_commands_and_hidden_characters(text: str, expected: str) -> None:
    assert plain(text) == expected


@given(st.text())
def test_plain_text_is_one_visible_line_that_can_be_encoded_and_stays_as_it_is(text: str) -> None:
    result = plain(text)
    assert not {unicodedata.category(letter) for letter in result} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert result.encode().decode() == result
    assert plain(result) == result


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("layer4.1.conv1.weight", "layer4.1.conv1.weight"),
        ("Füße 猫 👍", "Füße 猫 👍"),
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("a\x9b2Jb", "ab"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("two\r\nlines\tof   it", "two lines of it"),
        ("evil\u202egnp.exe\x00\x7f", "evilgnp.exe"),
        ("\ud800half", "half"),
    ],
)
def test_commands_and_hidden_characters_go_and_plain_text_stays(text: str, clean: str) -> None:
    assert clean_text(text) == clean


def test_long_text_is_cut_with_an_ellipsis_and_text_that_fits_is_not() -> None:
    assert clean_text("a" * 10, 10) == "a" * 10
    assert clean_text("a" * 11, 10) == "a" * 9 + "…"
    assert len(clean_text("b" * 10**7)) == 200


@given(st.text(alphabet=st.characters(), max_size=300), st.integers(2, 50))
def test_the_result_is_always_printable_short_and_final(text: str, limit: int) -> None:
    clean = clean_text(text, limit)
    assert len(clean) <= limit
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in clean)
    assert clean_text(clean, limit) == clean
