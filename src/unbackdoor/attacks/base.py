"""`Attack`: a recipe for poisoning; `FittedAttack`: what came of it on one data set."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.trigger import Trigger
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Hook, Runtime

CLEAN, POISON, COVER = 0, 1, 2
"""Kinds of training rows: untouched; triggered and given the attacker's label; triggered with the true label."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedAttack:
    """An attack made ready for one data set.

    Attributes:
        train: the poisoned training set; the clean one if a hook poisons its batches.
        kinds: of each row: `CLEAN`, `POISON` or `COVER`.
        original_labels: of each row, before poisoning.
        trigger: what wakes the backdoor at test time.
        criterion: what counts as success.
        hook: what the attack changes in training, if it controls that; None if it poisons data only.
    """

    train: ImageSet
    kinds: UInt8[Tensor, "n"]
    original_labels: Int[Tensor, "n"]
    trigger: Trigger
    criterion: Criterion
    hook: Hook | None = None

    @property
    def learns(self) -> bool:
        """Whether the trigger is made in the victim's training, and is not one before."""
        return self.hook is not None and next(self.trigger.parameters(), None) is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What an attack is prepared from; see `Attack.prepare`.

    Attributes:
        train: clean training images; not changed.
        build_model: returns a new, untrained network.
        runtime: its seed decides everything that is drawn.
        work: folder for the states of long preparations, or None.
    """

    train: ImageSet
    build_model: Callable[[], Network]
    runtime: Runtime
    work: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """Base of all attacks: its fields are its options, nothing else is stored."""

    revision: ClassVar[int] = 0
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    @abstractmethod
    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        """Make the trigger and poison the training set.

        Args:
            train: clean training images; not changed.
            build_model: returns a new, untrained network, for attacks that need one.
            runtime: its seed decides which rows are poisoned.
            work: folder, made if need be, in which long preparations keep the state from which they go on after an
                interruption; whoever saves what came of it removes it then. None: they start anew.

        Raises:
            InputError: an option out of range for this data set, or a trigger that changes no pixel.
        """


def poison_rows(
    candidates: Int[Tensor, "m"], rate: float, size: int, generator: torch.Generator, kind: str = "poison"
) -> Int[Tensor, "p"]:
    """Draw the rows to poison, or to cover.

    Args:
        candidates: rows that may be poisoned.
        rate: share of the whole training set, above 0 and at most 1.
        size: rows of the whole training set.
        generator: decides the draw.
        kind: of the rate, for messages: "poison" or "cover".

    Returns:
        round(rate * size) rows, ascending.

    Raises:
        InputError: a rate out of range, or more rows than there are candidates.
    """
    if not 0 < rate <= 1:
        raise InputError(f"the {kind} rate must lie above 0 and at most at 1, found {rate}")
    wanted = round(rate * size)
    if wanted < 1:
        raise InputError(f"a {kind} rate of {rate} of {size} images is no image; raise it")
    if not len(candidates):
        raise InputError(f"a {kind} rate of {rate} needs {wanted} images, but none may be {kind}ed")
    if wanted > len(candidates):
        # Rounded down: the rate that the message names must work.
        digits = max(4, math.ceil(math.log10(size)))
        highest = math.floor(10**digits * len(candidates) / size) / 10**digits
        raise InputError(
            f"a {kind} rate of {rate} needs {wanted} images, but only {len(candidates)} may be {kind}ed;"
            f" use at most {highest:.{digits}f}"
        )
    chosen = torch.randperm(len(candidates), generator=generator)[:wanted]
    return torch.sort(candidates.cpu()[chosen]).values


def check_target(target: int, train: ImageSet) -> None:
    """Raise InputError unless `target` is a class of the data set."""
    if not 0 <= target < train.classes:
        raise InputError(f"target class {target} is out of range; {train.name} has classes 0 to {train.classes - 1}")
