"""Auto: several purifiers, and a choice among them by what a defender can measure. Ours.

Which purifier works depends on an attack that nobody knows. Purifiers are tried one after the other, each from the
suspect and on four fifths of the clean samples. The last fifth judges. After each, weak spots of the suspect are sought
that it took out (see `weak_spots`), and put to the others. The best candidate has the least

    weak spots left + accuracy lost beyond what is allowed,
    weak spots left = mean of S(candidate, Y) over the other candidates Y / mean of S(suspect, Y) over all of them,

S(model, Y) being the success, on held-out images, of changes that lead the suspect to a class and Y not. A repair that
left the backdoor in is moved by what moved the suspect. If one class stands out, to which small changes lead the
suspect far more often than to the others, it is that of the backdoor, and S is the success of small changes there: what
a repair did to the other classes' weak spots, which every network has, is no matter. If none does, S is the mean over
classes, of changes made longer. Of candidates that are about as good the one that left the fewest of these longer ones
wins.

A repair may have taken out the changes that were found, and left the backdoor in. So where a class stands out, changes
are sought that lead the suspect and the candidate to a class, and one of the other candidates not. If that class stands
out once more, now in what leads the candidate itself, then it has left in no less than that excess.

A candidate that cost half of the accuracy has no vote and cannot win, as a broken model resists everything. One that
cost less, but more than is allowed, may be the only one that took the backdoor out: with few clean samples such repairs
are dear, and the cheap ones leave it in. Nothing further is tried once a candidate, judged by two others at least, has
no more than `enough` of both together.

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

import torch
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
from unbackdoor.purify.weak_spots import longer, successes, weak_spots
from unbackdoor.scan.screening import worth_searching
from unbackdoor.text import clean_text
from unbackdoor.training import Candidate, History, Recipe, Runtime, logits_of, stage
from unbackdoor.training.resume import Resume, states

TRIED: dict[str, type[Purifier]] = {method.__name__: method for method in (CLP, TSBD, NPD, FTSAM, SAU)}
"""What may be tried."""
JUDGING = 0.2
"""Share of what is left of a budget that a purifier may not take."""
LEAST_SHARE = 0.25
"""Of a budget: a further purifier is not tried with less."""
MOST_CLASSES = 16
"""Whose weak spots are sought: all are sought in one batch, whose memory grows with them."""
MOST_IMAGES = 128
"""Held-out images, at most, that are changed for each class."""
BROKEN = 0.5
"""Share of the suspect's accuracy below which a candidate has no vote and cannot win."""
STANDS_OUT = 0.3
"""By which success of small changes in one class must exceed the median of the classes."""
ALIKE = 0.05
"""Difference up to which candidates are about as good."""
DOUBTFUL = 0.5
"""Share of weak spots left, of the best candidate, from which on its report says that the backdoor may be left in."""


@dataclass(frozen=True, kw_only=True)
class Auto(Purifier):
    """Try several purifiers, and keep the one that leaves the fewest of the weak spots that others took out, cheaply.

    Attributes:
        methods: tried, in this order, each at its defaults: "CLP", "TSBD", "NPD", "FTSAM", "SAU".
        allowance: accuracy on held-out clean samples that a repair may cost before it counts against it, 0 to 1.
        enough: share of weak spots left, and accuracy lost beyond that, at which nothing further is tried, 0 to 1.
        augmentation: of the clean samples, in the methods that fine-tune on them; see `Recipe`.
    """

    methods: tuple[str, ...] = ("CLP", "TSBD", "NPD", "FTSAM")
    allowance: float = 0.04
    enough: float = 0.1
    augmentation: str = "crop-flip"

    # Since candidates are judged by what others took out, by the class that stands out if one does, and by whether it
    # still does in what they left in; a budget is not divided evenly, and dear candidates have a vote.
    revision: ClassVar[int] = 5

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(TRIED):
            raise InputError(f"Auto: methods are different ones of {', '.join(TRIED)}, found {self.methods}")
        check_allowance("Auto", self.allowance)
        if not 0 <= self.enough <= 1:
            raise InputError(f"Auto: the share that is enough must lie between 0 and 1, found {self.enough}")
        # What a recipe refuses, it refuses before any work; and so does a method.
        Recipe(augmentation=self.augmentation)
        for name in self.methods:
            self._method(name)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Try purifiers, and make `model` the best of what came of them (see `Purifier.repair`)."""
        clock = _Clock()
        kept, held = hold_out(data.need_clean("Auto"), runtime.seed)
        court = _Court(self, model, kept, held, runtime)
        for name in self.methods:
            # Another share would be another run, which an interrupted one cannot go on with.
            left = kept_scan(clock.left, self, model, data, runtime, stage(resume, f"time-{name}"))
            share = clock.share(left, _spent(stage(resume, f"started-{name}"), stage(resume, name)))
            if court.heard and share < LEAST_SHARE:
                break
            # Not `purify`, which would say once more what it said of the clean samples on the way here.
            repaired = copy.deepcopy(model)
            part = runtime.part((1 - JUDGING) * share)
            try:
                history = self._method(name).repair(repaired, DefenderData(clean=kept), part, stage(resume, name))
            except InputError as error:
                # Not for this network, or these images; another method may be.
                court.refused.append(f"{name} was left out: {error}.")
                continue
            court.hear(name, repaired.eval(), history)
            if court.enough():
                break
        if not court.heard:
            raise InputError(f"Auto: none of its methods can repair this model. {' '.join(court.refused)}")
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
    """Return the seconds that a purifier worked before it was interrupted, up to its last states; 0 if it was not.

    Args:
        started: file that is written at each start, with the seconds of the attempts before.
        resume: file beside which the purifier keeps its states.
    """
    if started is None or resume is None:
        return 0.0
    saved, spent = Resume(started, "seconds"), 0.0
    if before := saved.read():
        last = max((state.stat().st_mtime for state in states(resume)), default=0.0)
        spent = before["spent"] + max(0.0, last - started.stat().st_mtime)
    saved.write({"spent": spent})
    return spent


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heard:
    """A candidate, and what was measured on it."""

    name: str
    network: Network
    history: History
    accuracy: float
    answers: Int[Tensor, "n"]
    spots: Float[Tensor, "k c h w"]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Success:
    """How often changes lead a model to their classes, 0 to 1: as they were found, and made longer."""

    short: Float[Tensor, "k"]
    long: Float[Tensor, "k"]

    def at(self, place: int | None) -> float:
        """Return that of the small change for the class at this place, or the mean of the longer ones."""
        return float(self.long.mean() if place is None else self.short[place])


def _excess(success: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return by how much the success in each class exceeds that in the middle one."""
    return success - success.quantile(0.5)


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
        self.refused: list[str] = []
        self._success: dict[tuple[str | None, str], _Success] = {}
        self._still: dict[tuple[str, ...], Float[Tensor, "k"]] = {}

    def hear(self, name: str, network: Network, history: History) -> None:
        """Measure a candidate."""
        network = self.runtime.settle(network).requires_grad_(False)
        spots = weak_spots([self.suspect], [network], self.kept, self.classes, self.runtime)
        held = self.held.to(self.runtime.place)
        answers = logits_of(network, held.images, self.runtime).argmax(1)
        accuracy = float((answers == held.labels).float().mean())
        self.heard.append(
            _Heard(name=name, network=network, history=history, accuracy=accuracy, answers=answers, spots=spots)
        )

    def cost(self, candidate: _Heard) -> float:
        """Return the accuracy that a candidate has lost, 0 if none."""
        return max(0.0, self.accuracy - candidate.accuracy)

    def sound(self) -> list[_Heard]:
        """Return the candidates that are not broken."""
        return [one for one in self.heard if one.accuracy >= BROKEN * self.accuracy]

    def success(self, candidate: _Heard | None, other: _Heard) -> _Success:
        """Return how much of what another took out moves a candidate, or the suspect."""
        key = candidate.name if candidate else None, other.name
        if key not in self._success:
            network = candidate.network if candidate else self.suspect
            short, long = (
                successes(network, self.changed, spots, self.classes, self.runtime)
                for spots in (other.spots, longer(other.spots))
            )
            self._success[key] = _Success(short=short, long=long)
        return self._success[key]

    def standing_out(self) -> int | None:
        """Return the place, among the classes that are looked at, of the one that stands out; None if none does."""
        sound = self.sound()
        if not sound:
            return None
        excess = torch.stack([_excess(self.success(None, one).short) for one in sound]).mean(0)
        return int(excess.argmax()) if float(excess.max()) >= STANDS_OUT else None

    def left(self, candidate: _Heard) -> float | None:
        """Return how much of the weak spots that others took out a candidate has left; None without others.

        It may be above 1, where the candidate itself took out less than the others, and is 0 where nobody took anything
        out.
        """
        place = self.standing_out()
        left = self._left(candidate, place)
        return left if left is None or place is None else max(left, self._still_standing_out(candidate, place))

    def _still_standing_out(self, candidate: _Heard, place: int) -> float:
        """Return by how much a class stands out in what the candidate left in and one of the others took out; or 0."""
        others = [one for one in self.sound() if one is not candidate]
        key = candidate.name, *(one.name for one in others)
        if key not in self._still:
            moved, unmoved = [self.suspect, candidate.network], [one.network for one in others]
            spots = weak_spots(moved, unmoved, self.kept, self.classes, self.runtime)
            success = successes(candidate.network, self.changed, spots, self.classes, self.runtime)
            self._still[key] = _excess(success)
        excess = float(self._still[key][place])
        return excess if excess >= STANDS_OUT else 0.0

    def _left(self, candidate: _Heard, place: int | None) -> float | None:
        """Return how much of the spots that were found is left, in the class at this place or in all of them."""
        sound = self.sound()
        found = [self.success(candidate, one).at(place) for one in sound if one is not candidate]
        if not found:
            return None
        taken_out = fmean(self.success(None, one).at(place) for one in sound)
        return fmean(found) / taken_out if taken_out else 0.0

    def loss(self, candidate: _Heard) -> float:
        """Return the share of weak spots that a candidate has left, plus the accuracy it cost beyond the allowed."""
        # Rounding is no loss.
        dear = max(0.0, self.cost(candidate) - self.options.allowance - 1e-6)
        return (self.left(candidate) or 0.0) + dear

    def enough(self) -> bool:
        """Return whether nothing further need be tried."""
        sound = self.sound()
        return len(sound) > 2 and any(self.loss(one) <= self.options.enough for one in sound)

    def best(self) -> _Heard:
        """Return the candidate that is kept."""
        sound = self.sound()
        if not sound:
            return min(self.heard, key=self.cost)
        least = min(map(self.loss, sound))
        good = [one for one in sound if self.loss(one) <= least + ALIKE]
        return min(good, key=lambda one: self._left(one, None) or 0.0)

    def judge(self, model: Network) -> History:
        """Make the model the best candidate, and return its history with the evidence."""
        best = self.best()
        # What a repair has put in.
        for edit in best.network.description.edits[len(model.description.edits) :]:
            insert_plug(model, edit)
        model.load_state_dict(best.network.state_dict())
        suspect = Candidate(name="as it was", accuracy=self.accuracy, evidence={}, chosen=False)
        candidates = (suspect, *(self._told(one, one is best) for one in self.heard))
        notes = (self._reason(best), *self.refused, *best.history.notes)
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
        left, place, cost = self.left(best), self.standing_out(), self.cost(best)
        told = [f"Auto tried {', '.join(one.name for one in self.heard)} and kept {best.name}."]
        if left is None:
            told.append("No other repair kept enough accuracy to judge it by.")
        else:
            shown = f"{100 * min(left, 1.0):.0f}"
            told.append(f"Of the suspect's weak spots that the others took out it has left {shown} %.")
            if place is not None:
                name = clean_text(self.held.class_names[int(self.classes[place])], 60)
                told.append(f'What is counted are changes towards the class "{name}", which stands out.')
            if left >= DOUBTFUL:
                told.append("That is so much that the backdoor may be left in.")
        if cost > self.options.allowance + 1e-6:
            cheaper = ": cheaper ones left more" if any(self.cost(one) < cost for one in self.heard) else ""
            told.append(f"It cost {100 * cost:.1f} points of accuracy on held-out clean samples{cheaper}.")
        if left is not None:
            told.append("These are weak spots that were found, not the attacker's trigger, which nobody else has.")
        return " ".join(told)
