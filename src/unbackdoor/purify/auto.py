"""Auto: several purifiers, and a choice among them by what a defender can measure. Ours.

Which purifier works depends on an attack that nobody knows. Purifiers are tried one after the other, each from the
suspect and on four fifths of the clean samples. The last fifth judges. After each, weak spots of the suspect are sought
that it took out (see `weak_spots`), and put to the others. Of the candidates whose cost in accuracy is allowed the best
has the least

    weak spots left = sum of S(candidate, Y) / sum of S(suspect, Y), both over the other candidates Y,

S(model, Y) being the mean success over classes, on held-out images, of changes that lead the suspect to a class and Y
not. Those that took little out weigh little. A repair that left the backdoor in is moved by what moved the suspect,
whether the trigger is small, so that one class stands out, or not. Candidates that cost too much accuracy have no vote,
as a broken model resists everything. Nothing further is tried once a candidate, judged by two others at least, has no
more than `enough` left.

Of a budget each purifier may take what those before it have left, but for the time of judging: a short schedule of one
is worth more than shreds of several.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet, draw_clean, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network, insert_plug
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.clp import CLP
from unbackdoor.purify.found import kept_scan
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.npd import NPD
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.purify.sau import SAU
from unbackdoor.purify.tsbd import TSBD
from unbackdoor.purify.weak_spots import successes, weak_spots
from unbackdoor.scan.screening import worth_searching
from unbackdoor.training import Candidate, History, Runtime, logits_of, stage
from unbackdoor.training.resume import states

TRIED: dict[str, type[Purifier]] = {method.__name__: method for method in (CLP, TSBD, NPD, FTSAM, SAU)}
"""What may be tried."""
JUDGING = 0.15
"""Share of what is left of a budget that a purifier may not take."""
LEAST_SHARE = 0.25
"""Of a budget: a further purifier is not tried with less."""
MOST_CLASSES = 16
"""Whose weak spots are sought: all are sought in one batch, whose memory grows with them."""
MOST_IMAGES = 128
"""Held-out images, at most, that are changed for each class."""


@dataclass(frozen=True, kw_only=True)
class Auto(Purifier):
    """Try several purifiers, and keep the one that leaves the fewest of the weak spots that others took out.

    Attributes:
        methods: tried, in this order, each at its defaults: "CLP", "TSBD", "NPD", "FTSAM", "SAU".
        allowance: accuracy on held-out clean samples that a repair may cost, 0 to 1.
        enough: share of weak spots left at which nothing further is tried, 0 to 1.
        augmentation: of the clean samples, in the methods that fine-tune on them; see `Recipe`.
    """

    methods: tuple[str, ...] = ("CLP", "TSBD", "NPD", "FTSAM")
    allowance: float = 0.04
    enough: float = 0.1
    augmentation: str = "crop-flip"

    # Since candidates are judged by what others took out, and a budget is not divided evenly.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(TRIED):
            raise InputError(f"Auto: methods are different ones of {', '.join(TRIED)}, found {self.methods}")
        check_allowance("Auto", self.allowance)
        if not 0 <= self.enough <= 1:
            raise InputError(f"Auto: the share that is enough must lie between 0 and 1, found {self.enough}")
        for name in self.methods:
            self._method(name)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Try purifiers, and make `model` the best of what came of them (see `Purifier.repair`)."""
        clock = _Clock()
        kept, held = hold_out(data.need_clean("Auto"), runtime.seed)
        court = _Court(self, model, kept, held, runtime)
        for name in self.methods:
            # Another share would be another run, which an interrupted one cannot go on with.
            started = stage(resume, f"time-{name}")
            left = kept_scan(clock.left, self, model, data, runtime, started)
            share = clock.share(left, _spent(started, stage(resume, name)))
            if court.heard and share < LEAST_SHARE:
                break
            # Not `purify`, which would say once more what it said of the clean samples on the way here.
            repaired = copy.deepcopy(model)
            part = runtime.part((1 - JUDGING) * share)
            history = self._method(name).repair(repaired, DefenderData(clean=kept), part, stage(resume, name))
            court.hear(name, repaired.eval(), history)
            if court.enough():
                break
        return court.judge(model)

    def _method(self, name: str) -> Purifier:
        """Return a method at its defaults, but for the augmentation of those that have one."""
        method = TRIED[name]()
        own = {field.name for field in fields(method)}
        return replace(method, **{"augmentation": self.augmentation} if "augmentation" in own else {})


class _Clock:
    """Tells what is left of a budget, in interrupted runs what was left then."""

    def __init__(self) -> None:
        self._left, self._since = 1.0, time.monotonic()

    def left(self, model: Network, data: DefenderData, runtime: Runtime) -> dict[str, Any]:
        """Return the share of the budget that is left now, in the form that is kept on disk (see `kept_scan`)."""
        if runtime.budget is None:
            return {"left": 1.0}
        return {"left": self._left - (time.monotonic() - self._since) / (60 * runtime.budget)}

    def share(self, kept: dict[str, Any], spent: float) -> float:
        """Return what was left when a purifier was first started, of whose seconds some are spent; count from there."""
        self._left, self._since = kept["left"], time.monotonic() - spent
        return self._left


def _spent(started: Path | None, resume: Path | None) -> float:
    """Return the seconds between the start of a purifier and its last state, before it was interrupted; 0 if none is.

    Args:
        started: file that was written at the start.
        resume: file beside which the purifier keeps its states.
    """
    if started is None or resume is None:
        return 0.0
    last = max((state.stat().st_mtime for state in states(resume)), default=0.0)
    return max(0.0, last - started.stat().st_mtime) if last else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heard:
    """A candidate, and what was measured on it."""

    name: str
    network: Network
    history: History
    accuracy: float
    answers: Int[Tensor, "n"]
    spots: Float[Tensor, "k c h w"]


class _Court:
    """What speaks for and against each candidate."""

    def __init__(self, options: Auto, suspect: Network, kept: ImageSet, held: ImageSet, runtime: Runtime) -> None:
        self.options, self.held, self.runtime = options, held, runtime
        # So that the same samples lead to the same spots, whatever their order.
        self.kept = kept.in_canonical_order().to(runtime.place)
        self.suspect = runtime.settle(copy.deepcopy(suspect)).eval().requires_grad_(False)
        self.accuracy = accuracy_on(self.suspect, held, runtime)
        self.changed = draw_clean(held, min(MOST_IMAGES, len(held)), runtime.seed).to(runtime.place)
        self.classes = worth_searching(self.suspect, self.kept, MOST_CLASSES, runtime)
        self.heard: list[_Heard] = []
        self._success: dict[tuple[str | None, str], float] = {}

    def hear(self, name: str, network: Network, history: History) -> None:
        """Measure a candidate."""
        network = self.runtime.settle(network).requires_grad_(False)
        spots = weak_spots(self.suspect, network, self.kept, self.classes, self.runtime)
        held = self.held.to(self.runtime.place)
        answers = logits_of(network, held.images, self.runtime).argmax(1)
        accuracy = float((answers == held.labels).float().mean())
        self.heard.append(
            _Heard(name=name, network=network, history=history, accuracy=accuracy, answers=answers, spots=spots)
        )

    def cost(self, candidate: _Heard) -> float:
        """Return the accuracy that a candidate has lost, 0 if none."""
        return max(0.0, self.accuracy - candidate.accuracy)

    def allowed(self) -> list[_Heard]:
        """Return the candidates that have lost no more accuracy than they may."""
        # Rounding is no loss.
        return [one for one in self.heard if self.cost(one) <= self.options.allowance + 1e-6]

    def success(self, candidate: _Heard | None, other: _Heard) -> float:
        """Return how much of what another took out moves a candidate, or the suspect; 0 to 1."""
        key = candidate.name if candidate else None, other.name
        if key not in self._success:
            network = candidate.network if candidate else self.suspect
            found = successes(network, self.changed, other.spots, self.classes, self.runtime)
            self._success[key] = float(found.mean())
        return self._success[key]

    def left(self, candidate: _Heard) -> float | None:
        """Return the share of the weak spots taken out by others that a candidate has left; None without others.

        It may be a little above 1, and is 0 where the others took nothing out.
        """
        others = [one for one in self.allowed() if one is not candidate]
        if not others:
            return None
        taken_out = sum(self.success(None, one) for one in others)
        return sum(self.success(candidate, one) for one in others) / taken_out if taken_out else 0.0

    def enough(self) -> bool:
        """Return whether nothing further need be tried."""
        allowed = self.allowed()
        return len(allowed) > 2 and any((self.left(one) or 0.0) <= self.options.enough for one in allowed)

    def best(self) -> _Heard:
        """Return the candidate that is kept."""
        allowed = self.allowed()
        if not allowed:
            return min(self.heard, key=self.cost)
        return min(allowed, key=lambda one: self.left(one) or 0.0)

    def judge(self, model: Network) -> History:
        """Make the model the best candidate, and return its history with the evidence."""
        best = self.best()
        # What a repair has put in.
        for edit in best.network.description.edits[len(model.description.edits) :]:
            insert_plug(model, edit)
        model.load_state_dict(best.network.state_dict())
        suspect = Candidate(name="as it was", accuracy=self.accuracy, evidence={}, chosen=False)
        candidates = (suspect, *(self._told(one, one is best) for one in self.heard))
        notes = (self._reason(best), *best.history.notes)
        return replace(best.history, candidates=candidates, notes=notes)

    def _told(self, one: _Heard, chosen: bool) -> Candidate:
        left = self.left(one)
        evidence = {} if left is None else {"weak spots left": left}
        others = [other for other in self.heard if other is not one]
        if others:
            same = [float((one.answers == other.answers).float().mean()) for other in others]
            evidence["answers as the other candidates"] = fmean(same)
        return Candidate(name=one.name, accuracy=one.accuracy, evidence=evidence, chosen=chosen)

    def _reason(self, best: _Heard) -> str:
        tried = f"Auto tried {', '.join(one.name for one in self.heard)} and kept {best.name}."
        left = self.left(best)
        if left is None:
            return f"{tried} No other repair kept enough accuracy to judge it by."
        return (
            f"{tried} Of the suspect's weak spots that the others took out it has left {100 * left:.0f} %. That is"
            " evidence about these spots, not about the attacker's trigger, which nobody else has."
        )
