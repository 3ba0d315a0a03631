"""`Purifier`: take the backdoor out of a model."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from unbackdoor.data import DefenderData
from unbackdoor.models import Network
from unbackdoor.purify.doubt import doubts_about
from unbackdoor.training import History, Runtime, check_fits

Needed = Literal["clean", "untrusted"]
"""What of `DefenderData` a method may need."""


@dataclass(frozen=True, kw_only=True)
class Purifier(ABC):
    """Base of all purifiers: its fields are its options, nothing else is stored."""

    needs: ClassVar[frozenset[Needed]] = frozenset({"clean"})
    """Without what it cannot work; it may use the rest where it is there."""

    revision: ClassVar[int] = 0
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    def purify(
        self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None = None
    ) -> tuple[Network, History]:
        """Return a repaired copy of the model and what happened in the repair.

        Args:
            model: the suspect; not changed.
            data: what the defender has.
            runtime: device, seed, budget.
            resume: file through which an interrupted run goes on; see `training.fit`.

        Raises:
            InputError: data that the method needs are missing or do not fit the model.
        """
        check_fits(model, data.clean, data.untrusted)
        repaired = copy.deepcopy(model)
        for parameter in repaired.parameters():
            parameter.requires_grad_(True)
        doubts = doubts_about(data.clean, repaired, runtime) if data.clean else ()
        history = self.repair(repaired, data, runtime, resume)
        return repaired.eval(), replace(history, notes=(*doubts, *history.notes))

    @abstractmethod
    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Repair `model` in place; called by `purify` with a copy of its own."""
