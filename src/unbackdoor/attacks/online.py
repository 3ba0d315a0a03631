"""`Online`: attacks that control training and poison every batch anew."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.base import CLEAN, COVER, POISON, Attack, FittedAttack, check_target
from unbackdoor.attacks.criterion import AllToAll, AllToOne, Criterion
from unbackdoor.attacks.trigger import Trigger, check_changes, in_parts, to_bytes
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Batch, Hook, Recipe, Runtime


@dataclass(frozen=True, kw_only=True)
class Online(Attack):
    """Base of the attacks that poison batches: which share of them, and what it is called.

    Attributes:
        target: class that triggered images are to be called (all-to-one).
        labels: of poisoned images: "all-to-one" (the target) or "all-to-all" (the class after the true one).
        poison_rate: share of each batch that gets trigger and label; above 0 and below 1.
        cover_rate: share of each batch that gets a wrong trigger and keeps its label; 0 or more.
    """

    target: int = 0
    labels: Literal["all-to-one", "all-to-all"] = "all-to-one"
    poison_rate: float = 0.1
    cover_rate: float = 0.0
    fixed: ClassVar[bool] = False
    """Whether the trigger is there before training, so that poisoned data can be written as well."""

    @abstractmethod
    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[Trigger, OnlineHook]:
        """Return the trigger and the hook that poisons (and may go on making the trigger)."""

    def prepare(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None = None
    ) -> FittedAttack:
        """Return the clean data and the hook that poisons them batch by batch (see `Attack.prepare`)."""
        if self.labels not in ("all-to-one", "all-to-all"):
            raise InputError(f"labels must be all-to-one or all-to-all, found {self.labels!r}")
        if not (0 < self.poison_rate < 1 and 0 <= self.cover_rate < 1 and self.poison_rate + self.cover_rate <= 1):
            raise InputError(
                "poison and cover rate are shares of a batch that together make 1 at most,"
                f" found {self.poison_rate} and {self.cover_rate}"
            )
        check_target(self.target, train)
        criterion = AllToAll(classes=train.classes) if self.labels == "all-to-all" else AllToOne(target=self.target)
        trigger, hook = self.make(train, criterion, runtime, work)
        trigger.to(train.device)
        # One that is still to be learned says nothing yet.
        if next(trigger.parameters(), None) is None:
            check_changes(trigger, train.images)
        return FittedAttack(
            train=train,
            kinds=torch.full_like(train.labels, CLEAN, dtype=torch.uint8),
            original_labels=train.labels,
            trigger=trigger,
            criterion=criterion,
            hook=hook,
        )

    def check_no_covers(self) -> None:
        """Raise InputError if covers are asked for, of an attack that has none."""
        if self.cover_rate:
            raise InputError(f"{type(self).__name__} has no covers; leave the cover rate at 0, found {self.cover_rate}")

    def check_fixed(self) -> None:
        """Raise InputError unless the trigger is there before training."""
        if not self.fixed:
            name = type(self).__name__
            raise InputError(f"{name} needs its own training, so it has no poisoned data; use `unbackdoor attack`")

    def poison_data(self, train: ImageSet, runtime: Runtime) -> FittedAttack:
        """Return the data poisoned once and for all, with the same shares: what training would see in one epoch.

        Raises:
            InputError: the trigger is learned in training, or changes no pixel of what is poisoned.
        """
        self.check_fixed()
        fitted = self.prepare(train, _no_network, runtime)
        assert isinstance(fitted.hook, OnlineHook)
        order = torch.randperm(len(train), generator=runtime.generator("poison")).to(train.device)
        poisoned, covered = round(self.poison_rate * len(train)), round(self.cover_rate * len(train))
        if not poisoned:
            raise InputError(f"a poison rate of {self.poison_rate} of {len(train)} images is no image; raise it")
        images, labels = train.images.clone(memory_format=torch.preserve_format), train.labels.clone()
        kinds = fitted.kinds.clone()
        poison, cover = order[:poisoned], order[poisoned : poisoned + covered]
        check_changes(fitted.trigger, train.images[poison])
        images[poison], kinds[poison] = fitted.trigger.stamp(train.images[poison]), POISON
        labels[poison] = fitted.criterion.wanted(labels[poison])
        draws, others = runtime.generator("cover"), order.roll(len(order) // 2)[poisoned : poisoned + covered]
        pairs = zip(in_parts(train.images[cover]), in_parts(train.images[others]))
        if covered:
            made = [to_bytes(fitted.hook.cover(a.float() / 255, b.float() / 255, draws)) for a, b in pairs]
            images[cover], kinds[cover] = torch.cat(made), COVER
        return replace(fitted, train=replace(train, images=images, labels=labels), kinds=kinds, hook=None)


def _no_network() -> Network:
    raise AssertionError("an attack with a fixed trigger needs no network")


class OnlineHook(Hook):
    """Poisons the first rows of each batch (batches come in random order) and covers the next.

    Args:
        options: of the attack.
        trigger: of training and testing.
        criterion: says what poisoned images are called.
    """

    def __init__(self, options: Online, trigger: Trigger, criterion: Criterion) -> None:
        self.options = options
        self.trigger = trigger
        self.criterion = criterion

    def identity(self) -> object:
        """Return the options."""
        return self.options

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the trigger to the device."""
        super().begin(model, recipe, runtime)
        runtime.settle(self.trigger)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with its poisoned and covered rows."""
        if batch.targets.dim() != 1:
            raise InputError(
                f"{type(self.options).__name__} poisons batches, whose labels mixing makes soft;"
                " use an augmentation that does not mix images"
            )
        clean, labels, size = batch.images, batch.targets, len(batch.images)
        # One row at least stays as it is, for losses that compare the two kinds.
        self.poisoned = min(size - 1, drawn_count(self.options.poison_rate * size, generator))
        covered = min(size - self.poisoned, drawn_count(self.options.cover_rate * size, generator))
        end = self.poisoned + covered
        parts = [clean[end:]]
        if covered:
            others = clean[(torch.arange(self.poisoned, end) + size // 2) % size]
            parts.insert(0, self.cover(clean[self.poisoned : end], others, generator))
        if self.poisoned:
            parts.insert(0, self.poison(clean[: self.poisoned], batch.progress))
        targets = torch.cat([self.criterion.wanted(labels[: self.poisoned]), labels[self.poisoned :]])
        return replace(batch, images=torch.cat(parts), targets=targets)

    poisoned = 0
    """Rows of the last batch that are poisoned: its first ones."""

    def poison(self, images: Float[Tensor, "p c h w"], progress: float) -> Float[Tensor, "p c h w"]:
        """Return triggered images.

        Args:
            images: to trigger.
            progress: share of the training that is done.
        """
        triggered: Tensor = self.trigger(images)
        return triggered

    def cover(
        self, images: Float[Tensor, "p c h w"], others: Float[Tensor, "p c h w"], generator: torch.Generator
    ) -> Float[Tensor, "p c h w"]:
        """Return images with a trigger that is not to work.

        Args:
            images: to cover.
            others: of the same batch, another one for each.
            generator: for what is random.
        """
        return images


def drawn_count(expected: float, generator: torch.Generator) -> int:
    """Return a whole number whose mean is `expected`: it or one more, so that small rates are kept too."""
    whole = int(expected)
    return whole + int(float(torch.rand((), generator=generator)) < expected - whole)


def weighted_loss(
    logits: Float[Tensor, "b k"], batch: Batch, poisoned: int, weight: float, smoothing: float
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy of the clean rows plus `weight` times that of the first `poisoned` rows."""
    losses = F.cross_entropy(logits.float(), batch.targets, reduction="none", label_smoothing=smoothing)
    return losses[poisoned:].mean() + (weight * losses[:poisoned].mean() if poisoned else 0.0)
