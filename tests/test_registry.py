"""Methods are found by name, and third-party ones through entry points."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import unbackdoor.registry as module
from unbackdoor.attacks import ATTACKS, BadNets
from unbackdoor.errors import InputError
from unbackdoor.purify import PURIFIERS
from unbackdoor.registry import Registry
from unbackdoor.scan import SCANNERS


class Apple: ...


class Pear: ...


class Quince: ...


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Pretend that a package offers Quince as a fruit, and another Apple; return what is asked for."""
    asked: list[tuple[str, str]] = []

    def entry(name: str) -> SimpleNamespace:
        def load() -> type:
            asked.append(("load", name))
            return type(name, (Quince,), {})

        return SimpleNamespace(name=name, load=load)

    def entry_points(group: str) -> list[SimpleNamespace]:
        asked.append(("group", group))
        return [entry("Quince"), entry("Apple")] if group == "unbackdoor.fruit" else []

    monkeypatch.setattr(module, "entry_points", entry_points)
    return asked


def test_members_are_known_by_their_class_names_in_their_order() -> None:
    fruits: Registry[object] = Registry("nothing", Pear, Apple)
    assert list(fruits) == ["Pear", "Apple"]
    assert len(fruits) == 2
    assert fruits["Apple"] is Apple
    assert "Apple" in fruits
    assert "Quince" not in fruits
    assert dict(fruits.items()) == {"Pear": Pear, "Apple": Apple}


def test_entry_points_of_the_kind_are_added_once_and_cannot_replace_ours(installed: list[tuple[str, str]]) -> None:
    fruits: Registry[object] = Registry("fruit", Apple)
    assert installed == [], "nothing is loaded until it is needed"
    assert issubclass(fruits["Quince"], Quince)
    assert fruits["Apple"] is Apple
    assert set(fruits) == {"Apple", "Quince"}
    assert installed.count(("group", "unbackdoor.fruit")) == 1


def test_a_class_of_another_package_is_known_by_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands save the class's name, and a file must lead back to the class."""
    found = [SimpleNamespace(name="my-quince", load=lambda: Quince)]
    monkeypatch.setattr(module, "entry_points", lambda group: found)
    fruits: Registry[object] = Registry("fruit", Apple)
    assert list(fruits) == ["Apple", "Quince"]


@pytest.mark.parametrize("error", [ImportError("no module named seeds"), RuntimeError("rotten"), SyntaxError("?")])
def test_a_broken_package_is_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def load() -> type:
        raise error

    found = [
        SimpleNamespace(name="Broken", load=load),
        SimpleNamespace(name="NoClass", load=lambda: 5),
        SimpleNamespace(name="Quince", load=lambda: Quince),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: found)
    fruits: Registry[object] = Registry("fruit", Apple)
    assert list(fruits) == ["Apple", "Quince"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert f"the fruit Broken is left out, as it cannot be loaded: {error}" in caplog.text


@pytest.mark.parametrize(
    ("name", "hint"), [("Aple", "did you mean Apple"), ("apple", "did you mean Apple"), ("Peer", "did you mean Pear")]
)
def test_an_unknown_name_is_answered_with_the_likely_one_and_all_known(name: str, hint: str) -> None:
    fruits: Registry[object] = Registry("fruit", Pear, Apple)
    with pytest.raises(InputError, match=rf"unknown fruit '{name}'; {hint}\? \(known: Apple, Pear\)"):
        fruits[name]


def test_a_name_like_no_other_gets_no_hint() -> None:
    fruits: Registry[object] = Registry("fruit", Pear, Apple)
    with pytest.raises(InputError) as caught:
        fruits["xyzzy"]
    assert "did you mean" not in str(caught.value)


def test_the_registries_hold_the_methods_under_the_names_of_the_literature() -> None:
    assert {"BadNets", "Blended", "SIG"} <= set(ATTACKS)
    assert {
        "ANP",
        "BNP",
        "CLP",
        "FT",
        "FTInit",
        "FTSAM",
        "IBAU",
        "MCR",
        "NAD",
        "NCUnlearning",
        "NPD",
        "RNP",
        "SAU",
        "TSBD",
    } <= set(PURIFIERS)
    assert set(SCANNERS) >= {"NeuralCleanse"}
    assert ATTACKS["BadNets"] is BadNets


def test_get_returns_the_default_as_every_mapping_does() -> None:
    fruits: Registry[object] = Registry("fruit", Apple)
    assert fruits.get("Pear") is None
    assert fruits.get("Pear", 5) == 5
    assert fruits.get("Apple", 5) is Apple


def test_who_looks_for_what_is_elsewhere_is_told_where() -> None:
    with pytest.raises(InputError, match="'None' is no attack: models are trained on clean data by `unbackdoor train`"):
        ATTACKS["None"]
    assert "None" not in ATTACKS
