"""`Sifter`: which training rows are poisoned? `Suspicion`: its answer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.quick_model import quick_model
from unbackdoor.training import Runtime, check_fits, stage

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
"""Of the scores, that a record keeps."""

LEARNING = 0.5
"""Share of the budget for a model of the data, where none is given."""

FEWEST = 4
"""Rows of a class below which it is not compared with others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Suspicion:
    """What a sifter says of each row.

    Attributes:
        scores: how suspicious each row is, shape (N,); higher is more suspicious. Comparable within one answer only.
        clean: rows held clean, shape (N,).
        poisoned: rows held poisoned, shape (N,); what is neither is undecided.
        summary: what was found, one sentence.
        reasons: why each row is held to be what it is, one short sentence a row; empty: the sifter gives none.
        evidence: further numbers, JSON values.

    Raises:
        InputError: scores that are no finite numbers, shapes that differ, or a row that is held both.
    """

    scores: Float[Tensor, "n"]
    clean: Bool[Tensor, "n"]
    poisoned: Bool[Tensor, "n"]
    summary: str = ""
    reasons: Sequence[str] = ()
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.ndim != 1 or not self.scores.is_floating_point() or not bool(self.scores.isfinite().all()):
            raise InputError("a suspicion needs one finite number a row")
        for name, rows in (("clean", self.clean), ("poisoned", self.poisoned)):
            if rows.dtype != torch.bool or rows.shape != self.scores.shape:
                raise InputError(f"a suspicion needs one truth value a row that says whether it is held {name}")
        if bool((self.clean & self.poisoned).any()):
            raise InputError("a suspicion holds some row both clean and poisoned")
        if self.reasons and len(self.reasons) != len(self.scores):
            raise InputError(f"{len(self.scores)} rows need as many reasons, found {len(self.reasons)}")

    def __len__(self) -> int:
        return len(self.scores)

    def words(self) -> list[str]:
        """Return "clean", "poisoned" or "undecided" for each row."""
        numbers = (self.clean.long() + 2 * self.poisoned.long()).tolist()
        return [("undecided", "clean", "poisoned")[number] for number in numbers]

    def held(self) -> tuple[Int[Tensor, "p"], Int[Tensor, "q"]]:
        """Return the rows held clean and the rows held poisoned, for methods that need some of either.

        Raises:
            InputError: there are none of one kind.
        """
        clean, poisoned = (rows.nonzero().squeeze(1) for rows in (self.clean, self.poisoned))
        if not len(clean) or not len(poisoned):
            raise InputError(
                f"of {len(self)} rows {len(clean)} are held clean and {len(poisoned)} poisoned; at least one of either"
                " is needed, so give more images, or larger shares"
            )
        return clean, poisoned

    def at(self, rows: Int[Tensor, "m"]) -> Suspicion:
        """Return what is said of these rows, in their order."""
        reasons = [self.reasons[row] for row in rows.tolist()] if self.reasons else ()
        return replace(
            self, scores=self.scores[rows], clean=self.clean[rows], poisoned=self.poisoned[rows], reasons=reasons
        )

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, without its rows."""
        held = {"clean": int(self.clean.sum()), "poisoned": int(self.poisoned.sum())}
        levels = self.scores.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        return {
            "rows": len(self),
            "held": {**held, "undecided": len(self) - sum(held.values())},
            "score_quantiles": {f"{level:g}": value for level, value in zip(QUANTILES, levels)},
            "summary": self.summary,
            **self.evidence,
        }


@dataclass(frozen=True, kw_only=True)
class Sifter(ABC):
    """Base of all sifters: its fields are its options, nothing else is stored.

    Attributes:
        always: whether a fixed share of the rows is held poisoned, also of clean data, so that the answer says nothing
            of the data as a whole.
        uses_clean: whether it can use clean samples; others get none.
        least_classes: that need `FEWEST` rows or more, for a method that compares classes; 0: it compares none.
        revision: raised when the same options give other results than before: the bench takes no old cells for done.
    """

    always: ClassVar[bool] = False
    uses_clean: ClassVar[bool] = False
    least_classes: ClassVar[int] = 0
    revision: ClassVar[int] = 0

    def score(
        self, data: DefenderData, runtime: Runtime, model: Network | None = None, resume: Path | None = None
    ) -> Suspicion:
        """Say of each untrusted row how suspicious it is.

        The rows are put into an order that depends on their content alone, so the order in which they come cannot
        change anything.

        Args:
            data: `untrusted` is sifted; a method with `uses_clean` uses `clean` if it is there.
            runtime: device, seed, budget.
            model: one that was trained on the untrusted data, not changed; if None, the method trains one itself.
            resume: file beside which the states of training are kept, through which an interrupted run goes on; see
                `training.fit`. Whoever keeps the answer removes them.

        Returns:
            One score a row, in the order of `data.untrusted`.

        Raises:
            InputError: there are no untrusted data, or they do not fit the model or the method.
        """
        untrusted = data.need_untrusted(type(self).__name__)
        self.check_comparable(untrusted)
        order = untrusted.canonical_order()
        rows = untrusted.subset(order)
        clean = data.clean.in_canonical_order() if data.clean is not None and self.uses_clean else None
        work = runtime
        if model is None:
            model = self.learn(rows, runtime.part(LEARNING), resume)
            work = runtime.part(1 - LEARNING)
        check_fits(model, untrusted, data.clean)
        found = self.inspect(Observed(model, rows, clean, work, resume))
        if len(found) != len(rows):
            raise InputError(f"{type(self).__name__} gave {len(found)} scores for {len(rows)} rows")
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return found.at(back)

    def check_comparable(self, rows: ImageSet) -> None:
        """Refuse rows of too few classes, before anything is learned from them.

        Raises:
            InputError: fewer than `least_classes` have `FEWEST` rows or more.
        """
        large = int((torch.bincount(rows.labels.cpu()) >= FEWEST).sum())
        if large < self.least_classes:
            raise InputError(
                f"{rows.name}: {type(self).__name__} compares classes and needs at least {self.least_classes} with"
                f" {FEWEST} rows or more, found {large}; choose a method that looks at single rows, such as FCT or"
                " LossIsolation"
            )

    def learn(self, rows: ImageSet, runtime: Runtime, resume: Path | None) -> Network:
        """Return a model of the rows, for callers that have none; the quick model unless the method has its own."""
        return quick_model(rows, runtime, resume=stage(resume, "quick"))

    @abstractmethod
    def inspect(self, seen: Observed) -> Suspicion:
        """Do the work of `score` on what a model makes of the rows; scores come in the order of `seen.rows`."""


def check_share(method: str, **shares: float) -> None:
    """Raise InputError unless each share lies above 0 and below 1."""
    for name, value in shares.items():
        if not (math.isfinite(value) and 0 < value < 1):
            raise InputError(f"{method}: {name} must be a share above 0 and below 1, found {value}")


def extremes(
    scores: Float[Tensor, "n"], lowest: float, highest: float, generator: torch.Generator
) -> tuple[Bool[Tensor, "n"], Bool[Tensor, "n"]]:
    """Return the rows with the lowest and the highest scores.

    Args:
        scores: of all rows.
        lowest: share of the rows, rounded down.
        highest: share of the rows, rounded down; no row is in both.
        generator: decides among equal scores, which a method with many of them would else decide by the rows' order.
    """
    size = len(scores)
    shuffled = torch.randperm(size, generator=generator)
    order = shuffled[scores.cpu()[shuffled].argsort(stable=True)]
    low, high = (torch.zeros(size, dtype=torch.bool) for _ in range(2))
    low[order[: int(lowest * size)]] = True
    high[order[size - int(highest * size) :]] = True
    return low & ~high, high
