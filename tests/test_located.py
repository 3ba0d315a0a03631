"""YAML is read as `yaml.safe_load` reads it, with the line of every value, and nothing else than plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unbackdoor.errors import InputError
from unbackdoor.located import MOST_BYTES, Located, read_located

READER = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["", "null", "no", "1e3", "1:30", "<<", "=", "- a", "# a", "&a", "*a", "!!int", "'", "2020-02-30"]
    )
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=25,
)


def read(folder: Path, text: str | bytes) -> Located:
    path = folder / "grid.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_located(path)


def lines(found: Located) -> Any:
    """Return the line of every scalar, in the shape of the values."""
    match found.value:
        case dict():
            return {name: lines(one) for name, one in found.value.items()}
        case list():
            return [lines(one) for one in found.value]
    return found.line


@READER
@given(values, st.sampled_from([None, False, True]))
def test_whatever_yaml_can_say_is_read_back_equal(tmp_path: Path, value: Any, flow: bool | None) -> None:
    found = read(tmp_path, yaml.safe_dump(value, default_flow_style=flow, sort_keys=False)).plain()
    assert found == value
    # 1 == 1.0 == True: the types must be the same too.
    assert repr(found) == repr(value)


GRAMMAR = "{}[],:&*!|>?-%@#'\"\\<= \n\t~.ab01"


@READER
@given(st.text(GRAMMAR, max_size=40) | st.text(max_size=20) | st.binary(max_size=40))
def test_any_file_is_read_or_refused_with_a_sentence(tmp_path: Path, content: str | bytes) -> None:
    try:
        read(tmp_path, content).plain()
    except InputError as error:
        message = str(error)
    else:
        return
    assert message.isprintable()


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    text = "# a grid\na: 1\n\nb:\n  - 2\n  - c: 3\n    d: [4,\n      5]\ne: >\n  text\n  more\nf:\n  6\n"
    found = read(tmp_path, text)
    assert lines(found) == {"a": 2, "b": [5, {"c": 6, "d": [7, 8]}], "e": 9, "f": 12}
    assert found.line == 2
    assert found.items()["b"].line == 4, "a named value stands where its name does"
    assert found.items()["b"].elements()[1].line == 6


def test_an_error_names_file_and_line(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb: 2\n").items()["b"]
    assert str(found.error("no good")) == f"{tmp_path / 'grid.yaml'}, line 2: no good"


def refusal(folder: Path, text: str | bytes) -> tuple[int, str]:
    """Return the line that the error names, 0 for none, and its words."""
    with pytest.raises(InputError) as caught:
        read(folder, text)
    words = str(caught.value)
    assert words.isprintable()
    assert "grid.yaml" in words
    line = words.partition("grid.yaml, line ")[2].partition(":")[0]
    return int(line or 0), words


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", "{a: 1,\nb: 2,\na: 3}", "a: 1\nb: 2\n'a': 1\n"])
def test_a_name_that_stands_twice_is_refused_with_both_lines(tmp_path: Path, text: str) -> None:
    line, words = refusal(tmp_path, text)
    assert line == 3
    assert "'a' stands twice, the first time in line 1; keep one" in words


def test_the_same_name_in_two_places_is_no_duplicate(tmp_path: Path) -> None:
    assert read(tmp_path, "a: {b: 1}\nb: {b: 2}\n").plain() == {"a": {"b": 1}, "b": {"b": 2}}


def test_an_alias_stands_for_its_value(tmp_path: Path) -> None:
    found = read(tmp_path, "a: &rounds 30\nb: [*rounds, *rounds]\nc: &both {d: *rounds}\ne: *both\n")
    assert found.plain() == {"a": 30, "b": [30, 30], "c": {"d": 30}, "e": {"d": 30}}


def bomb() -> str:
    """Return 10 lines that stand for a billion values."""
    levels = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 10)]
    return "\n".join(levels)


def named_bomb() -> str:
    """Return the same, made of mappings."""
    levels = ["a0: &a0 {x: 1}"]
    levels += [f"a{n}: &a{n} {{{', '.join(f'{x}: *a{n - 1}' for x in 'bcdefghi')}}}" for n in range(1, 10)]
    return "\n".join(levels)


def deep_through_aliases() -> str:
    """Return three nests, each of which yaml reads, one within the other."""
    left, right = "[" * 200, "]" * 200
    return f"a: &a {left}1{right}\nb: &b {left}*a{right}\nc: {left}*b{right}\n"


@pytest.mark.parametrize(
    "text",
    [
        bomb(),
        named_bomb(),
        "a: &a [*a]",
        "&a {b: {c: *a}}",
        deep_through_aliases(),
        "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 600))]),
        "[" * 5000,
        "{a: " * 5000,
    ],
    ids=["bomb", "bomb of names", "itself", "itself below", "deep", "chain", "open lists", "open mappings"],
)
def test_what_repeats_itself_or_is_nested_without_end_is_refused(tmp_path: Path, text: str) -> None:
    _, words = refusal(tmp_path, text)
    assert any(reason in words for reason in ("aliases", "this is not YAML", "50 deep"))


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [echo]",
        "!!python/object/apply:os.system {args: [echo]}",
        "!!python/object/new:os.system [echo]",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!!python/tuple [1, 2]",
        "!mine 5",
        "!mine [5]",
        "!mine {a: 5}",
    ],
)
def test_tags_that_make_objects_are_refused_with_their_line(tmp_path: Path, value: str) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(value)
    line, _ = refusal(tmp_path, f"a: 1\nb: {value}\n")
    assert line == 2


@pytest.mark.parametrize("value", ["!!set {x, y}", "!!omap [x: 1]", "!!pairs [x: 1]"])
def test_tags_of_other_kinds_than_lists_and_mappings_are_not_read_as_these(tmp_path: Path, value: str) -> None:
    assert refusal(tmp_path, f"a: 1\nb: {value}\n")[0] == 2


@pytest.mark.parametrize(
    "value",
    [
        "!!int x",
        "!!int ''",
        "!!float x",
        "!!float ''",
        "!!bool maybe",
        "!!timestamp soon",
        "2020-02-30",
        "9" * 5000,
        "0x" + "f" * 4000,
        "=",
    ],
)
def test_a_value_that_is_not_what_it_says_is_refused_with_its_line(tmp_path: Path, value: str) -> None:
    line, words = refusal(tmp_path, f"a: 1\nb: {value}\n")
    assert line == 2
    assert "cannot understand this value" in words


def test_plain_tags_of_scalars_are_read(tmp_path: Path) -> None:
    assert read(tmp_path, "a: !!str 5\nb: !!float 5\nc: ! d\n").plain() == {"a": "5", "b": 5.0, "c": "d"}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\n2: b\n", 2, "2 is no name"),
        ("a: 1\nyes: b\n", 2, "True is no name"),
        ("a: 1\n~: b\n", 2, "nothing is no name"),
        ("a: 1\n? [b]\n: 2\n", 2, "a name must be plain text"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", 3, "cannot understand"),
        ("a: 1\nb: [2\n", 3, "this is not YAML"),
        ("a: 1\n\tb: 2\n", 2, "this is not YAML"),
        ("a: 1\nb: *c\n", 2, "undefined alias 'c'"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
        ("", 0, "is empty"),
        ("# nothing\n", 0, "is empty"),
        (b"a: \xff\n", 0, "name a YAML file"),
        (b"a: \x07\n", 0, "this is not YAML"),
        (b"#" * (MOST_BYTES + 1), 0, "more than the"),
    ],
)
def test_what_is_no_grid_is_refused_where_it_stands(tmp_path: Path, text: str | bytes, line: int, words: str) -> None:
    found, sentence = refusal(tmp_path, text)
    assert found == line
    assert words in sentence


def test_a_file_that_is_not_there_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"{reason}.*name a YAML file") as caught:
            read_located(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("sceds", "did you mean seeds?"), ("xyzzy", "known: seeds, scan"), ("Seeds", "did you mean seeds?")],
)
def test_an_unknown_name_is_answered_with_the_likely_one(tmp_path: Path, name: str, hint: str) -> None:
    found = read(tmp_path, f"scan: 1\n{name}: 2\n")
    with pytest.raises(InputError, match="line 2: unknown name") as caught:
        found.items(("seeds", "scan"))
    assert hint in str(caught.value)
    assert set(found.items()) == {"scan", name}, "any name may stand where none are listed"


def test_a_single_value_is_a_list_of_one_and_an_empty_list_is_refused(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1\nb: [1, 2]\nc: []\n").items()
    assert [one.plain() for one in found["a"].elements()] == [1]
    assert [one.plain() for one in found["b"].elements()] == [1, 2]
    with pytest.raises(InputError, match="line 3: the list is empty"):
        found["c"].elements()


@pytest.mark.parametrize(
    ("text", "shown"), [("[1]", "a list"), ("{b: 1}", "options by name"), ("", "nothing"), ("5", "5"), ("no", "False")]
)
def test_text_is_text(tmp_path: Path, text: str, shown: str) -> None:
    assert read(tmp_path, "a: 'no'\n").items()["a"].text() == "no"
    with pytest.raises(InputError, match=f"line 1: expected text, found {shown}"):
        read(tmp_path, f"a: {text}\n").items()["a"].text()


@pytest.mark.parametrize("text", ["true", "'5'", "[5]", "{a: 5}", "~", "-1", "1.5", ".inf", ".nan", "-.inf", "-0.1"])
def test_a_whole_number_is_one(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "a: 5\n").items()["a"].number(5, whole=True) == 5
    with pytest.raises(InputError, match="line 1: expected a whole number of at least 0, found"):
        read(tmp_path, f"a: {text}\n").items()["a"].number(0, whole=True)


def test_numbers_may_be_fractions_and_have_a_lowest(tmp_path: Path) -> None:
    found = read(tmp_path, "a: 1.5\nb: 2\nc: .nan\n").items()
    assert found["a"].number(1.5) == 1.5
    assert found["b"].number(0) == 2
    with pytest.raises(InputError, match=r"line 1: expected a number of at least 1\.6, found 1\.5"):
        found["a"].number(1.6)
    with pytest.raises(InputError, match="line 3: expected a number"):
        found["c"].number(0)


def test_only_mappings_have_names(tmp_path: Path) -> None:
    for text, shown in (("[a]", "a list"), ("a", "'a'"), ("~", "nothing")):
        with pytest.raises(InputError, match=f"line 1: expected options by name, such as 'seeds: .*found {shown}"):
            read(tmp_path, text).items()
