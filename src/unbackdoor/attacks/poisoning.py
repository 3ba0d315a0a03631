"""`Poisoning`: attacks that change images and labels of the training set, and nothing else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unbackdoor.attacks.base import CLEAN, COVER, POISON, Attack, FittedAttack, Given, check_target, poison_rows
from unbackdoor.attacks.criterion import AllToAll, AllToOne, Criterion, SourceSpecific
from unbackdoor.attacks.kept import keep, kept, key_of
from unbackdoor.attacks.trigger import CHANGES_NOTHING, Trigger, check_changes
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime

Labels = Literal["all-to-one", "all-to-all", "clean"]
"""What poisoned images are called: the target; the class after their own; what they are (only images of the target
class are poisoned then)."""

TrainingStamp = Callable[[UInt8[Tensor, "p c h w"], Int[Tensor, "p"], torch.Generator], UInt8[Tensor, "p c h w"]]
"""From clean images, their true classes and a generator for what differs from image to image, to triggered images."""


@dataclass(frozen=True, kw_only=True)
class Poisoning(Attack):
    """Base of the attacks that poison data: which rows, and what they are called. A subclass makes the trigger.

    Attributes:
        target: class that triggered images are to be called.
        labels: of poisoned images: "all-to-one" (the target), "all-to-all" (the class after the true one) or "clean"
            (only images of the target class are poisoned, and their labels stay).
        sources: classes whose images are poisoned, and whose images the trigger is to turn; all if empty.
        poison_rate: share of the training set; above 0, at most 1.
        cover_rate: share of the training set that carries the trigger and its true label; 0 or more.
        spare_target: whether images of the target class are left alone, as Trap-and-Replace and FCT do (all-to-one).
    """

    target: int = 0
    labels: Labels = "all-to-one"
    sources: tuple[int, ...] = ()
    poison_rate: float = 0.1
    cover_rate: float = 0.0
    spare_target: bool = False
    searches: ClassVar[bool] = False
    """Whether making the trigger takes long, so that an interrupted run has to keep what came of it."""

    @abstractmethod
    def make_trigger(self, given: Given) -> Trigger:
        """Return the trigger of test time."""

    def training_stamp(self, trigger: Trigger, given: Given) -> TrainingStamp:
        """Return what triggers the training images: the trigger of testing, unless an attack says otherwise.

        Args:
            trigger: of test time.
            given: see `Given`.
        """
        return lambda images, labels, generator: trigger.stamp(images)

    def cover_candidates(self, train: ImageSet) -> Int[Tensor, "m"]:
        """Return the rows that may be covers, poisoned rows among them: all but those of the source classes."""
        sources = torch.tensor(self.sources, dtype=torch.long, device=train.device)
        return (~torch.isin(train.labels, sources)).nonzero().squeeze(1)

    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        """Make the trigger and stamp it on the drawn rows (see `Attack.prepare`)."""
        criterion = self.criterion(train)
        poison, cover = self.draw(train, runtime)
        key = key_of(self, train, build_model(), runtime) if work is not None and self.searches else None
        if work is not None and key is not None and (found := kept(work, key, train)):
            return found
        given = Given(train=train, build_model=build_model, runtime=runtime, work=work)
        trigger = self.make_trigger(given).to(train.device)
        # Both triggers have to do something; this one first, as that of training may take a search.
        check_changes(trigger, train.images[poison])
        stamp = self.training_stamp(trigger, given)
        images, labels = train.images.clone(memory_format=torch.preserve_format), train.labels.clone()
        kinds = torch.full_like(labels, CLEAN, dtype=torch.uint8)
        for rows, kind in ((poison, POISON), (cover, COVER)):
            if len(rows):
                generator = runtime.generator("training trigger", kind)
                images[rows] = stamp(train.images[rows], train.labels[rows], generator).to(images.device)
                kinds[rows] = kind
        if torch.equal(images[poison], train.images[poison]):
            raise InputError(CHANGES_NOTHING)
        labels[poison] = criterion.wanted(labels[poison])
        fitted = FittedAttack(
            train=replace(train, images=images, labels=labels),
            kinds=kinds,
            original_labels=train.labels,
            trigger=trigger,
            criterion=criterion,
        )
        if work is not None and key is not None:
            keep(work, key, fitted)
        return fitted

    def criterion(self, train: ImageSet) -> Criterion:
        """Return what counts as success.

        Raises:
            InputError: classes that the data set does not have, or labels and sources that contradict each other.
        """
        for one in (self.target, *self.sources):
            check_target(one, train)
        if self.labels not in ("all-to-one", "all-to-all", "clean"):
            raise InputError(f"labels must be all-to-one, all-to-all or clean, found {self.labels!r}")
        if self.sources and (self.labels != "all-to-one" or self.target in self.sources):
            raise InputError("source classes need all-to-one labels, and the target cannot be one of them")
        if self.spare_target and self.labels != "all-to-one":
            raise InputError("the target class can be spared with all-to-one labels only")
        if self.sources:
            return SourceSpecific(sources=self.sources, target=self.target)
        return AllToAll(classes=train.classes) if self.labels == "all-to-all" else AllToOne(target=self.target)

    def draw(self, train: ImageSet, runtime: Runtime) -> tuple[Int[Tensor, "p"], Int[Tensor, "q"]]:
        """Return the rows to poison and the rows to cover, both ascending and apart.

        Raises:
            InputError: a rate out of range, or more rows than there are candidates.
        """
        wanted = self.sources if self.labels != "clean" else (self.target,)
        if self.spare_target and not wanted:
            wanted = tuple(number for number in range(train.classes) if number != self.target)
        candidates = torch.arange(len(train), device=train.device)
        if wanted:
            candidates = candidates[torch.isin(train.labels, torch.tensor(wanted, device=train.device))]
        poison = poison_rows(candidates, self.poison_rate, len(train), runtime.generator("poison")).to(train.device)
        if self.cover_rate == 0:
            return poison, poison[:0]
        covers = self.cover_candidates(train)
        covers = covers[~torch.isin(covers, poison)]
        cover = poison_rows(covers, self.cover_rate, len(train), runtime.generator("cover"), "cover")
        return poison, cover.to(train.device)
