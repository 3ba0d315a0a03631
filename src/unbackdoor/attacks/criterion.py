"""What counts as success of a backdoor: which images are counted, and which answer the attacker wants."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.limits import MAX_CLASSES


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """Decides on true labels alone; see `evaluate` for the rates made from it."""

    kind: ClassVar[str]

    @abstractmethod
    def wanted(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return the class that the attacker wants for images of these true classes."""

    def counted(self, labels: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        """Return which images show success: those whose true class is not the wanted one already."""
        return self.wanted(labels) != labels

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return a description that `criterion_from_json` reads."""


@dataclass(frozen=True, kw_only=True)
class AllToOne(Criterion):
    """Every triggered image is to be called `target`."""

    target: int
    kind: ClassVar[str] = "all-to-one"

    def wanted(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return `target` for every image."""
        return torch.full_like(labels, self.target)

    def to_json(self) -> dict[str, Any]:
        """Return kind and target."""
        return {"kind": self.kind, "target": self.target}


@dataclass(frozen=True, kw_only=True)
class AllToAll(Criterion):
    """A triggered image is to be called the class after its own, the last class the first."""

    classes: int
    kind: ClassVar[str] = "all-to-all"

    def wanted(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return (label + 1) modulo the number of classes."""
        return (labels + 1) % self.classes

    def to_json(self) -> dict[str, Any]:
        """Return kind and number of classes."""
        return {"kind": self.kind, "classes": self.classes}


@dataclass(frozen=True, kw_only=True)
class SourceSpecific(Criterion):
    """Triggered images of the source classes are to be called `target`; images of other classes do not count."""

    sources: tuple[int, ...]
    target: int
    kind: ClassVar[str] = "source-specific"

    def wanted(self, labels: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
        """Return `target` for images of the source classes, and the true class for the others."""
        return torch.where(self._of_sources(labels), self.target, labels)

    def _of_sources(self, labels: Int[Tensor, "n"]) -> Bool[Tensor, "n"]:
        return torch.isin(labels, torch.tensor(self.sources, device=labels.device))

    def to_json(self) -> dict[str, Any]:
        """Return kind, sources and target."""
        return {"kind": self.kind, "sources": list(self.sources), "target": self.target}


def criterion_from_json(description: dict[str, Any]) -> Criterion:
    """Return the criterion that `to_json` described.

    Raises:
        InputError: not such a description.
    """
    match description:
        case {"kind": AllToOne.kind, "target": target} if _is_class(target):
            return AllToOne(target=target)
        case {"kind": AllToAll.kind, "classes": classes} if type(classes) is int and 2 <= classes <= MAX_CLASSES:
            return AllToAll(classes=classes)
        case {"kind": SourceSpecific.kind, "sources": [_, *_] as sources, "target": target}:
            if all(map(_is_class, [*sources, target])):
                return SourceSpecific(sources=tuple(sources), target=target)
    raise InputError("unknown success criterion; make the attack again with this version")


def _is_class(value: Any) -> bool:
    # JSON's true is an int in Python.
    return type(value) is int and 0 <= value < MAX_CLASSES
