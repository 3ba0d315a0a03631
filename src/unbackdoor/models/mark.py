"""The mark of models that we backdoor ourselves, which a repair does not take away."""

from __future__ import annotations

from typing import Any

from unbackdoor.models.checkpoint import LoadedModel


def repaired_mark(mark: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the mark of a model that was repaired from one with this mark.

    It stays a mark, because no repair is known to have worked, and a repair must not be a way to lose it; `repaired`
    tells programs that there was one.
    """
    return None if mark is None else {**mark, "repaired": True}


def is_repaired(model: LoadedModel) -> bool:
    """Return whether the file says that it was repaired from a model with our mark."""
    return model.backdoored is not None and model.backdoored.get("repaired") is True


def mark_sentence(model: LoadedModel) -> str | None:
    """Return what the mark in the file says, or None if there is no mark."""
    if model.backdoored is None:
        return None
    if is_repaired(model):
        return "the file itself says that it was repaired from a model that unbackdoor backdoored"
    return "the file itself says that unbackdoor made it backdoored"


def notes_of(model: LoadedModel) -> list[str]:
    """Return the sentences on a model that every page about it must show, the mark first."""
    sentence = mark_sentence(model)
    # Not str.capitalize, which would make all other letters small.
    return [*([f"{sentence[0].upper()}{sentence[1:]}."] if sentence else []), *model.notes]
