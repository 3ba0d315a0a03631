"""Auto: several purifiers, and a choice among them by what a defender can measure. Ours.

Which purifier works depends on an attack that nobody knows. Purifiers are tried one after the other, each from the
suspect and on four fifths of the clean samples. The last fifth judges (see `court`). Nothing further is tried once a
candidate has no more than `enough` of weak spots left and lost accuracy together: judged by one other if a class stands
out in what they took out, and by two otherwise.

Of a budget each purifier may take what those before it have left, but for the time of judging: a short schedule of one
is worth more than shreds of several.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.clp import CLP
from unbackdoor.purify.court import Court
from unbackdoor.purify.found import kept_scan
from unbackdoor.purify.ft_sam import FTSAM
from unbackdoor.purify.npd import NPD
from unbackdoor.purify.pruning import check_allowance
from unbackdoor.purify.sau import SAU
from unbackdoor.purify.tsbd import TSBD
from unbackdoor.training import History, Recipe, Runtime, stage
from unbackdoor.training.resume import Resume, states

TRIED: dict[str, type[Purifier]] = {method.__name__: method for method in (CLP, TSBD, NPD, FTSAM, SAU)}
"""What may be tried."""
JUDGING = 0.35
"""Share of what is left of a budget that a purifier may not take."""
LEAST_SHARE = 0.4
"""Of a budget: a further purifier is not tried with less."""


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
    revision: ClassVar[int] = 6

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
        court = Court(model, kept, held, self.allowance, runtime)
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
            if court.enough(self.enough):
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
