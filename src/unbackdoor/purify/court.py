"""What speaks for and against the repairs of one suspect, without its trigger. Ours.

After each repair, weak spots of the suspect are sought that it took out (see `weak_spots`), and put to the others. The
best candidate has the least

    weak spots left + accuracy lost beyond what is allowed,
    weak spots left = mean of S(candidate, Y) over the other candidates Y / mean of S(suspect, Y) over all of them,

S(model, Y) being the success, on held-out images, of changes that lead the suspect to a class and Y not. A repair that
left the backdoor in is moved by what moved the suspect. If one class stands out, to which small changes lead the
suspect far more often than to the others, it is that of the backdoor, and S is by how much they lead there more often
than to the middle class: what a repair did to weak spots that every network has is no matter. If none does, S is the
mean over classes, of changes made longer. Of candidates that lose nothing the most accurate wins.

A repair may have taken out the changes that were found, and left the backdoor in. So where a class stands out, changes
are sought that lead the suspect and the candidate to a class, and one of the other candidates not. If that class stands
out once more, now in what leads the candidate itself, then it has left in no less than that excess.

A candidate that cost half of the accuracy, or hardly does better than chance, has no vote and cannot win, as a broken
model resists everything. One that cost less, but more than is allowed, may be the only one that took the backdoor out:
with few clean samples such repairs are dear, and the cheap ones leave it in.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.data import ImageSet, draw_clean
from unbackdoor.models import Network, insert_plug
from unbackdoor.purify.choice import accuracy_on, least_accuracy
from unbackdoor.purify.weak_spots import longer, successes, weak_spots
from unbackdoor.scan.screening import worth_searching
from unbackdoor.text import clean_text
from unbackdoor.training import Candidate, History, Runtime, logits_of

MOST_CLASSES = 16
"""Whose weak spots are sought: all are sought in one batch, whose memory grows with them."""
MOST_IMAGES = 128
"""Held-out images, at most, that are changed for each class."""
BROKEN = 0.5
"""Share of the suspect's accuracy below which a candidate has no vote and cannot win; see `least_accuracy`."""
STANDS_OUT = 0.3
"""By which success of small changes in one class must exceed the median of the classes."""
DOUBTFUL = 0.5
"""Share of weak spots left, of the best candidate, from which on its report says that the backdoor may be left in."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """A candidate, and what was measured on it."""

    name: str
    network: Network
    history: History
    accuracy: float
    answers: Int[Tensor, "n"]
    spots: Float[Tensor, "k c h w"]


def _excess(success: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
    """Return by how much the success in each class exceeds that in the middle one."""
    return success - success.quantile(0.5)


class Court:
    """What speaks for and against each candidate.

    Args:
        suspect: the model as it was.
        kept: clean samples that weak spots are sought on; candidates may have learned from them.
        held: others, which judge.
        allowance: accuracy that a candidate may cost before it counts against it, 0 to 1.
        runtime: device, precision and seed.
    """

    def __init__(self, suspect: Network, kept: ImageSet, held: ImageSet, allowance: float, runtime: Runtime) -> None:
        self.held, self.allowance, self.runtime = held, allowance, runtime
        # So that the same samples lead to the same spots, whatever their order.
        self.kept = kept.in_canonical_order().to(runtime.place)
        self.suspect = runtime.settle(copy.deepcopy(suspect)).eval().requires_grad_(False)
        self.accuracy = accuracy_on(self.suspect, held, runtime)
        self.changed = draw_clean(held, min(MOST_IMAGES, len(held)), runtime.seed).to(runtime.place)
        self.classes, _ = worth_searching(self.suspect, self.kept, MOST_CLASSES, runtime)
        self.heard: list[Heard] = []
        self.refused: list[str] = []
        self._success: dict[tuple[str | None, str, bool], Float[Tensor, "k"]] = {}
        self._still: dict[tuple[str, ...], Float[Tensor, "k"]] = {}

    def hear(self, name: str, network: Network, history: History) -> None:
        """Measure a candidate."""
        network = self.runtime.settle(network).requires_grad_(False)
        spots = weak_spots([self.suspect], [network], self.kept, self.classes, self.runtime)
        held = self.held.to(self.runtime.place)
        answers = logits_of(network, held.images, self.runtime).argmax(1)
        accuracy = float((answers == held.labels).float().mean())
        self.heard.append(
            Heard(name=name, network=network, history=history, accuracy=accuracy, answers=answers, spots=spots)
        )

    def cost(self, candidate: Heard) -> float:
        """Return the accuracy that a candidate has lost, 0 if none."""
        return max(0.0, self.accuracy - candidate.accuracy)

    def sound(self) -> list[Heard]:
        """Return the candidates that are not broken."""
        least = least_accuracy(BROKEN, self.accuracy, self.held.classes)
        return [one for one in self.heard if one.accuracy >= least]

    def success(self, candidate: Heard | None, other: Heard, long: bool = False) -> Float[Tensor, "k"]:
        """Return how often what another took out leads a candidate, or the suspect, to each class, 0 to 1.

        Of the changes as they were found, or of the same made longer.
        """
        key = candidate.name if candidate else None, other.name, long
        if key not in self._success:
            network = candidate.network if candidate else self.suspect
            spots = longer(other.spots) if long else other.spots
            self._success[key] = successes(network, self.changed, spots, self.classes, self.runtime)
        return self._success[key]

    def _counted(self, candidate: Heard | None, other: Heard, place: int | None) -> float:
        """Return by how much small changes stand out at this place, or the mean success of longer ones."""
        if place is None:
            return float(self.success(candidate, other, long=True).mean())
        return float(_excess(self.success(candidate, other))[place].clamp_min(0))

    def standing_out(self) -> int | None:
        """Return the place, among the classes that are looked at, of the one that stands out; None if none does."""
        sound = self.sound()
        if not sound:
            return None
        excess = torch.stack([_excess(self.success(None, one)) for one in sound]).mean(0)
        return int(excess.argmax()) if float(excess.max()) >= STANDS_OUT else None

    def left(self, candidate: Heard) -> float | None:
        """Return how much of the weak spots that others took out a candidate has left; None without others.

        It may be above 1, where the candidate itself took out less than the others, and is 0 where nobody took anything
        out.
        """
        place = self.standing_out()
        left = self._left(candidate, place)
        if left is None or place is None or candidate not in self.sound():
            return left
        return max(left, self._still_standing_out(candidate, place))

    def _still_standing_out(self, candidate: Heard, place: int) -> float:
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

    def _left(self, candidate: Heard, place: int | None) -> float | None:
        """Return how much of the spots that were found is left, in the class at this place or in all of them."""
        sound = self.sound()
        found = [self._counted(candidate, one, place) for one in sound if one is not candidate]
        if not found:
            return None
        taken_out = fmean(self._counted(None, one, place) for one in sound)
        return fmean(found) / taken_out if taken_out else 0.0

    def loss(self, candidate: Heard) -> float:
        """Return the share of weak spots that a candidate has left, plus the accuracy it cost beyond the allowed."""
        # Rounding is no loss.
        dear = max(0.0, self.cost(candidate) - self.allowance - 1e-6)
        return (self.left(candidate) or 0.0) + dear

    def enough(self, loss: float) -> bool:
        """Return whether nothing further need be tried, as a candidate loses so little.

        Two may be alike for both having left the backdoor in. Where a class stands out in what they took out, they have
        not; where none does, it takes a third to tell.
        """
        sound = self.sound()
        judges = 2 if self.standing_out() is None else 1
        return len(sound) > judges and any(self.loss(one) <= loss for one in sound)

    def best(self) -> Heard:
        """Return the candidate that is kept."""
        sound = self.sound()
        if not sound:
            return min(self.heard, key=self.cost)
        return min(sound, key=lambda one: (self.loss(one), self.cost(one)))

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

    def _told(self, one: Heard, chosen: bool) -> Candidate:
        left = self.left(one)
        evidence = {} if left is None else {"weak spots left": left}
        others = [other for other in self.heard if other is not one]
        if others:
            same = [float((one.answers == other.answers).float().mean()) for other in others]
            evidence["answers as the other candidates"] = fmean(same)
        return Candidate(name=one.name, accuracy=one.accuracy, evidence=evidence, chosen=chosen)

    def _reason(self, best: Heard) -> str:
        left, place, cost = self.left(best), self.standing_out(), self.cost(best)
        told = [f"Auto tried {', '.join(one.name for one in self.heard)} and kept {best.name}."]
        if left is None:
            told.append("No other repair kept enough accuracy to judge it by.")
        else:
            shown = f"{100 * min(left, 1.0):.0f}"
            told.append(f"Of the suspect's weak spots that the others took out it has left {shown} %.")
            if place is not None:
                name = clean_text(self.held.class_names[int(self.classes[place])], 60)
                told.append(f'Counted is what leads to the class "{name}", which stands out, more than to others.')
            if left >= DOUBTFUL:
                told.append("That is so much that the backdoor may be left in.")
        if cost > self.allowance + 1e-6:
            cheaper = ": cheaper ones left more" if any(self.cost(one) < cost for one in self.heard) else ""
            told.append(f"It cost {100 * cost:.1f} points of accuracy on held-out clean samples{cheaper}.")
        if left is not None:
            told.append("These are weak spots that were found, not the attacker's trigger, which nobody else has.")
        return " ".join(told)
