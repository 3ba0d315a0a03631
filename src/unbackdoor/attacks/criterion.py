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


def criterion_from_json(description: dict[str, Any]) -> Criterion:
    """Return the criterion that `to_json` described.

    Raises:
        InputError: not such a description.
    """
    match description:
        case {"kind": AllToOne.kind, "target": int(target)} if 0 <= target < MAX_CLASSES:
            return AllToOne(target=target)
        case {"kind": AllToAll.kind, "classes": int(classes)} if 2 <= classes <= MAX_CLASSES:
            return AllToAll(classes=classes)
    raise InputError("unknown success criterion; make the attack again with this version")
