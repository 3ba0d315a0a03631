"""The method cards name the options of the methods, and their defaults, as the code has them."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from unbackdoor.attacks import ATTACKS
from unbackdoor.molecules.attacks import MOLECULE_ATTACKS
from unbackdoor.molecules.purify import MOLECULE_PURIFIERS
from unbackdoor.molecules.scan import MOLECULE_SCANNERS
from unbackdoor.purify import PURIFIERS
from unbackdoor.scan import SCANNERS
from unbackdoor.secure import TRAINERS
from unbackdoor.sift import SIFTERS

REGISTRIES: dict[str, tuple[Any, ...]] = {
    "attack": (ATTACKS, MOLECULE_ATTACKS),
    "scanner": (SCANNERS,),
    "method": (SIFTERS, TRAINERS, PURIFIERS, MOLECULE_SCANNERS, MOLECULE_PURIFIERS),
}
METHODS = [
    pytest.param(option, registry[name], id=f"{option}-{registry[name].__module__}-{name}")
    for option, registries in REGISTRIES.items()
    for registry in registries
    for name in sorted(registry)
    if registry[name].__module__.startswith("unbackdoor.")
]
CARDS = {path: path.read_text() for path in sorted((Path(__file__).parents[1] / "docs" / "methods").glob("*.md"))}


def card_of(method: Any) -> str:
    """Return the only card that says that this class is its code."""
    folder = method.__module__.rpartition(".")[0]
    named = re.compile(rf"\*\*Code\.\*\*\s+\[?`{re.escape(folder)}\.{method.__name__}`")
    (card,) = (text for text in CARDS.values() if named.search(text))
    return card


def options_in(card: str) -> dict[str, str]:
    """Return the default of each option that stands in the first column of a table."""
    found: dict[str, str] = {}
    for line in card.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        options = re.findall(r"`--([a-z]+\.[a-z_]+)`", cells[0]) if line.startswith("|") else []
        defaults = cells[1].split(", ") if len(options) > 1 else cells[1:2]
        found |= dict(zip(options, defaults))
    return found


def same(shown: str, value: Any) -> bool:
    """Return whether a card shows this default; what has none is told in words."""
    shown = shown.strip("`")
    match value:
        case None | "" | ():
            return True
        case bool():
            return shown == str(value).lower()
        case str():
            return shown == value
        case tuple():
            if " ... " in shown:
                value = (value[0], value[-1])
            parts = re.split(r", ?| \.\.\. ", shown.strip("[]"))
            return len(parts) == len(value) and all(map(same, parts, value))
    return bool(float(Fraction(shown.split()[0])) == pytest.approx(value, rel=1e-3))


@pytest.mark.parametrize(("option", "method"), METHODS)
def test_a_card_has_the_options_of_its_method_with_their_defaults(option: str, method: Any) -> None:
    fields = {f"{option}.{field.name}": field.default for field in dataclasses.fields(method)}
    own = {f"{option}.{name}" for name in inspect.get_annotations(method)} & fields.keys()
    told = options_in(card_of(method))
    assert told.keys() <= fields.keys()
    assert own <= told.keys()
    wrong = {name: (shown, fields[name]) for name, shown in told.items() if not same(shown, fields[name])}
    assert not wrong


@pytest.mark.parametrize(("option", "method"), METHODS)
def test_the_command_of_a_card_names_its_method(option: str, method: Any) -> None:
    command = re.search(r"\*\*Command\.\*\*\s+`unbackdoor\s+([^`]+)`", card_of(method))
    assert command
    if named := re.search(rf"--{option}\s+(\S+)", command[1]):
        assert named[1] == method.__name__
        return
    # Without a name it is the default one.
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), command[1].split()))
    module = importlib.import_module(".".join(["unbackdoor.commands", *words]))
    assert module.CHOICES[option].default == method.__name__


def test_a_default_that_differs_is_seen() -> None:
    assert same("16/255 (0.063)", 16 / 255)
    assert same("`[0, 2]`", (0, 2))
    assert not same("0.1", 0.2)
    assert not same("true", False)
    assert not same("`[0, 1]`", (0, 2))
