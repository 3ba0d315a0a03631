"""Auto: several purifiers, and a choice among them by what a defender can measure. Ours.

Which purifier works depends on an attack that nobody knows. First the suspect is probed (see `probes`): for each class
a trigger is inverted and a universal perturbation is sought. Then purifiers are tried one after the other, each from
the suspect and on four fifths of the clean samples. The last fifth judges.

Where one class of the suspect stands out, its two probes stand for the backdoor, and the best candidate has the largest

    score = -power - max(0, accuracy of the suspect - accuracy),

the power being the share of held-out images that the stronger of the two leads to the class. Nothing further is tried
once a candidate has taken all but the share `enough` of the power, and cost no more accuracy than allowed.

Where no class stands out, as with triggers that change whole images much, the probes cannot tell candidates apart by
their power. Their answers still tell who is like whom: what the suspect answers to a probe, and several repairs answer
otherwise but alike, was taken out by all of them; a candidate that goes on answering as the suspect has left it in, and
one that answers as nobody else went astray. So all purifiers are tried, and of those whose cost in accuracy is allowed
the best has the largest

    score = share of probes that it answers otherwise than the suspect, and as another repair does,

a mean over the other repairs whose cost is allowed. Of two with the same, as any two alone have, it is the one that
answers less often as the suspect.

A budget is shared by time: each purifier may take an equal part of what those before it have left.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network, insert_plug
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.clp import CLP
from unbackdoor.purify.found import kept_scan
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.npd import NPD
from unbackdoor.purify.probes import Probes, answers_to, find_probes, power, standing_out
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.purify.sau import SAU
from unbackdoor.purify.tsbd import TSBD
from unbackdoor.training import Candidate, History, Runtime, stage

TRIED: dict[str, type[Purifier]] = {method.__name__: method for method in (CLP, TSBD, NPD, FTSAM, SAU)}
"""What may be tried."""
PROBING = 0.2
"""Share of a budget that the search for probes may take."""
LEAST_SHARE = 0.01
"""Of a budget, for a purifier for which nothing is left: one round of each takes its time in any case."""


@dataclass(frozen=True, kw_only=True)
class Auto(Purifier):
    """Try several purifiers, and keep the one that clean samples and the suspect's weak spots speak for.

    Attributes:
        methods: tried, in this order, each at its defaults: "CLP", "TSBD", "NPD", "FTSAM", "SAU".
        allowance: accuracy on held-out clean samples that a repair may cost, 0 to 1.
        enough: share of the probes' power over the suspect at which a repair is good enough, 0 to 1.
    """

    methods: tuple[str, ...] = ("CLP", "TSBD", "NPD", "FTSAM")
    allowance: float = 0.04
    enough: float = 0.1

    def __post_init__(self) -> None:
        if not self.methods or len(set(self.methods)) < len(self.methods) or not set(self.methods) <= set(TRIED):
            raise InputError(f"Auto: methods are different ones of {', '.join(TRIED)}, found {self.methods}")
        check_allowance("Auto", self.allowance)
        if not 0 <= self.enough <= 1:
            raise InputError(f"Auto: the share that is enough must lie between 0 and 1, found {self.enough}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Try purifiers, and make `model` the best of what came of them (see `Purifier.repair`)."""
        clock = _Clock(len(self.methods))
        kept, held = hold_out(data.need_clean("Auto"), runtime.seed)
        found = kept_scan(self._find, self, model, data, runtime.part(PROBING), stage(resume, "probes"))
        court = _Court(self, model, held, Probes(**found).to(runtime.place), runtime)
        for name in self.methods:
            # Another share would be another run, which an interrupted one cannot go on with.
            clock.start(kept_scan(clock.left, self, model, data, runtime, stage(resume, f"time-{name}")))
            part = runtime.part(clock.share)
            # Not `purify`, which would say once more what it said of the clean samples on the way here.
            repaired = copy.deepcopy(model)
            history = TRIED[name]().repair(repaired, DefenderData(clean=kept), part, stage(resume, name))
            if court.enough(court.hear(name, repaired.eval(), history)):
                break
        return court.judge(model)

    def _find(self, model: Network, data: DefenderData, runtime: Runtime) -> dict[str, Any]:
        """Return the probes of the suspect, as the fields of `Probes`."""
        kept, held = hold_out(data.need_clean("Auto"), runtime.seed)
        return dict(vars(find_probes(model, kept, held, runtime)))


class _Clock:
    """Divides what is left of a budget evenly among the purifiers that are still to be tried.

    Args:
        methods: number of them.

    Attributes:
        share: of the whole budget, for the purifier that was started last.
    """

    def __init__(self, methods: int) -> None:
        self.methods = methods
        self.share = 0.0
        self._left, self._since = 1.0, time.monotonic()

    def left(self, model: Network, data: DefenderData, runtime: Runtime) -> dict[str, Any]:
        """Return the share of the budget that is left now, in the form that is kept on disk (see `kept_scan`)."""
        if runtime.budget is None:
            return {"left": 1.0}
        return {"left": self._left - (time.monotonic() - self._since) / (60 * runtime.budget)}

    def start(self, kept: dict[str, Any]) -> None:
        """Give the next purifier its share of what was left when it was first started."""
        self._left, self._since = kept["left"], time.monotonic()
        self.share = max(LEAST_SHARE, self._left / self.methods)
        self.methods -= 1


@dataclass(frozen=True, kw_only=True, eq=False)
class _Heard:
    """A candidate, and what was measured on it."""

    name: str
    network: Network
    history: History
    accuracy: float
    power: float
    answers: Int[Tensor, "2 k n"]


class _Court:
    """What speaks for and against each candidate."""

    def __init__(self, options: Auto, suspect: Network, held: ImageSet, probes: Probes, runtime: Runtime) -> None:
        self.options, self.held, self.probes, self.runtime = options, held, probes, runtime
        self.suspected = standing_out(probes)
        self.heard: list[_Heard] = []
        self.suspect = self._measured("as it was", suspect, History(epochs=0), probes.answers)

    def _measured(self, name: str, network: Network, history: History, answers: Int[Tensor, "2 k n"]) -> _Heard:
        return _Heard(
            name=name,
            network=network,
            history=history,
            accuracy=accuracy_on(network, self.held, self.runtime),
            power=power(answers, self.probes, self.suspected),
            answers=answers,
        )

    def hear(self, name: str, network: Network, history: History) -> _Heard:
        """Measure a candidate."""
        answers = answers_to(self.runtime.settle(network), self.probes, self.runtime)
        self.heard.append(self._measured(name, network, history, answers))
        return self.heard[-1]

    def cost(self, candidate: _Heard) -> float:
        """Return the accuracy that a candidate has lost, 0 if none."""
        return max(0.0, self.suspect.accuracy - candidate.accuracy)

    def allowed(self, candidate: _Heard) -> bool:
        """Return whether a candidate has lost no more accuracy than it may."""
        # Rounding is no loss.
        return self.cost(candidate) <= self.options.allowance + 1e-6

    def enough(self, candidate: _Heard) -> bool:
        """Return whether nothing further need be tried."""
        weak = candidate.power <= self.options.enough * self.suspect.power
        return self.suspected is not None and weak and self.allowed(candidate)

    def like_suspect(self, candidate: _Heard) -> float:
        """Return the share of probes that a candidate answers as the suspect does."""
        return float((candidate.answers == self.suspect.answers).float().mean())

    def shared(self, candidate: _Heard) -> float | None:
        """Return the share of probes that a repair answers otherwise than the suspect and as another repair does.

        It is a mean over the others whose cost is allowed; None if there are none.
        """
        changed = candidate.answers != self.suspect.answers
        others = [one for one in self.heard if one is not candidate and self.allowed(one)]
        shares = [float((changed & (candidate.answers == one.answers)).float().mean()) for one in others]
        return sum(shares) / len(shares) if shares else None

    def best(self) -> _Heard:
        """Return the candidate that is kept."""
        if self.suspected is not None:
            return max(self.heard, key=lambda one: -one.power - self.cost(one))
        allowed = [one for one in self.heard if self.allowed(one)]
        if not allowed:
            return min(self.heard, key=self.cost)
        return max(allowed, key=lambda one: (self.shared(one) or 0.0, -self.like_suspect(one)))

    def judge(self, model: Network) -> History:
        """Make the model the best candidate, and return its history with the evidence."""
        best = self.best()
        # What a repair has put in.
        for edit in best.network.description.edits[len(model.description.edits) :]:
            insert_plug(model, edit)
        model.load_state_dict(best.network.state_dict())
        candidates = tuple(self._told(one, one is best) for one in (self.suspect, *self.heard))
        notes = (self._reason(best), *best.history.notes)
        return replace(best.history, candidates=candidates, notes=notes)

    def _told(self, one: _Heard, chosen: bool) -> Candidate:
        shared = None if one is self.suspect else self.shared(one)
        return Candidate(
            name=one.name,
            accuracy=one.accuracy,
            evidence={
                "power of the probes": one.power,
                "answers of the suspect": self.like_suspect(one),
                **({} if shared is None else {"changed answers that others share": shared}),
            },
            chosen=chosen,
        )

    def _reason(self, best: _Heard) -> str:
        tried = ", ".join(one.name for one in self.heard)
        if self.suspected is None:
            return (
                f"Auto tried {tried} and kept {best.name}. No class of the suspect stands out, so no probe can tell"
                " whether a backdoor is gone: of the repairs that keep accuracy, it is the one whose changed answers to"
                " the probes the others share most."
            )
        return (
            f"Auto tried {tried} and kept {best.name}. Class {self.suspected} of the suspect stands out: its probes led"
            f" {100 * self.suspect.power:.0f} % of held-out images there before, and {100 * best.power:.0f} % now."
        )
