"""Every attack has a method card with its picture."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from unbackdoor.attacks import ATTACKS

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_an_attack_s_card_shows_its_picture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    card = importlib.import_module("make_pictures").CARDS.get(name, name.lower())
    assert f"(pictures/{card}.png)" in (DOCS / "methods" / f"{card}.md").read_text()
    assert (DOCS / "methods" / "pictures" / f"{card}.png").stat().st_size > 1000
