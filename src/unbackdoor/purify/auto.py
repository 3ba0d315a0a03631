"""Auto: several purifiers, and a choice among them by what a defender can measure. Ours.

Which purifier works depends on an attack that nobody knows. First the suspect is probed (see `probes`): for each class
a trigger is inverted and a universal perturbation is sought. Then purifiers are tried one after the other, the cheapest
first, each from the suspect and on four fifths of the clean samples. The last fifth judges.

Where one class of the suspect stands out, its two probes stand for the backdoor, and the best candidate has the largest

    score = -power - max(0, accuracy of the suspect - accuracy),

the power being the share of held-out images that the stronger of the two leads to the class. Nothing further is tried
once a candidate has taken all but the share `enough` of the power, and cost no more accuracy than allowed.

Where no class stands out, as with triggers that change whole images much, the probes cannot tell candidates apart: then
the first of `PREFERRED` whose cost in accuracy is allowed is taken, and the notes say so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Int
from torch import Tensor

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.clp import CLP
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.probes import Probes, answers_to, find_probes, power, standing_out
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.purify.sau import SAU
from unbackdoor.purify.tsbd import TSBD
from unbackdoor.training import Candidate, History, Runtime, stage

TRIED: dict[str, type[Purifier]] = {method.__name__: method for method in (CLP, TSBD, FTSAM, SAU)}
"""What may be tried, the cheapest first."""
PREFERRED = ("TSBD", "FTSAM", "SAU", "CLP")
"""Where nothing speaks for one of them; in the order of what they reached over our own attacks."""
PROBING = 0.2
"""Share of a budget that the search for probes may take."""
WEIGHTS = {"CLP": 0.05, "TSBD": 2.0, "FTSAM": 1.0, "SAU": 2.0}
"""By which the methods share the rest; CLP has no schedule."""


@dataclass(frozen=True, kw_only=True)
class Auto(Purifier):
    """Try several purifiers, and keep the one that clean samples and the suspect's weak spots speak for.

    Attributes:
        methods: tried, in this order, each at its defaults: "CLP", "TSBD", "FTSAM", "SAU".
        allowance: accuracy on held-out clean samples that a repair may cost, 0 to 1.
        enough: share of the probes' power over the suspect at which a repair is good enough, 0 to 1.
    """

    methods: tuple[str, ...] = ("CLP", "TSBD", "FTSAM")
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
        kept, held = hold_out(data.need_clean("Auto"), runtime.seed)
        probes = find_probes(model, kept, held, runtime.part(PROBING))
        court = _Court(self, model, held, probes, runtime)
        whole = sum(WEIGHTS[name] for name in self.methods)
        for name in self.methods:
            part = runtime.part((1 - PROBING) * WEIGHTS[name] / whole)
            # Not `purify`, which would say once more what it said of the clean samples on the way here.
            repaired = copy.deepcopy(model)
            history = TRIED[name]().repair(repaired, DefenderData(clean=kept), part, stage(resume, name))
            if court.enough(court.hear(name, repaired.eval(), history)):
                break
        return court.judge(model)


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

    def enough(self, candidate: _Heard) -> bool:
        """Return whether nothing further need be tried."""
        weak = candidate.power <= self.options.enough * self.suspect.power
        return self.suspected is not None and weak and self.cost(candidate) <= self.options.allowance

    def best(self) -> _Heard:
        """Return the candidate that is kept."""
        if self.suspected is not None:
            return max(self.heard, key=lambda one: -one.power - self.cost(one))
        # Rounding is no loss.
        allowed = [one for one in self.heard if self.cost(one) <= self.options.allowance + 1e-6]
        if not allowed:
            return min(self.heard, key=self.cost)
        return min(allowed, key=lambda one: PREFERRED.index(one.name))

    def judge(self, model: Network) -> History:
        """Make the model the best candidate, and return its history with the evidence."""
        best = self.best()
        model.load_state_dict(copy.deepcopy(best.network.state_dict()))
        candidates = tuple(self._told(one, one is best) for one in (self.suspect, *self.heard))
        notes = (self._reason(best), *best.history.notes)
        return replace(best.history, candidates=candidates, notes=notes)

    def _told(self, one: _Heard, chosen: bool) -> Candidate:
        others = [other for other in self.heard if other is not one and one is not self.suspect]
        agreement = [float((one.answers == other.answers).float().mean()) for other in others]
        return Candidate(
            name=one.name,
            accuracy=one.accuracy,
            evidence={
                "power of the probes": one.power,
                "answers of the suspect": float((one.answers == self.suspect.answers).float().mean()),
                **({"answers of the other repairs": sum(agreement) / len(agreement)} if agreement else {}),
            },
            chosen=chosen,
        )

    def _reason(self, best: _Heard) -> str:
        tried = ", ".join(one.name for one in self.heard)
        if self.suspected is None:
            return (
                f"Auto tried {tried} and kept {best.name}. No class of the suspect stands out, so no probe can tell"
                " whether a backdoor is gone: the choice follows accuracy and what the methods reached elsewhere."
            )
        return (
            f"Auto tried {tried} and kept {best.name}. Class {self.suspected} of the suspect stands out: its probes led"
            f" {100 * self.suspect.power:.0f} % of held-out images there before, and {100 * best.power:.0f} % now."
        )
