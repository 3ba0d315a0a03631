"""`History`: what happened while a model was trained or repaired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One quantity tried at several values, and the value that was chosen by clean samples alone.

    Attributes:
        name: of the quantity, such as "share of neurons reset".
        values: tried, in ascending order.
        accuracy: at each value, on clean samples that were held out, 0 to 1.
        chosen: one of the values.
        rule: by which it was chosen, one sentence.
    """

    name: str
    values: tuple[float, ...]
    accuracy: tuple[float, ...]
    chosen: float
    rule: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "values": list(self.values), "accuracy": list(self.accuracy)}


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One of several models that a repair chose from.

    Attributes:
        name: of what made it.
        accuracy: on held-out clean samples, 0 to 1.
        evidence: what else was measured, fractions by name.
        chosen: whether it is the result.
    """

    name: str
    accuracy: float
    evidence: Mapping[str, float]
    chosen: bool

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {**asdict(self), "evidence": dict(self.evidence)}


@dataclass(kw_only=True)
class History:
    """What happened in training.

    Attributes:
        epochs: how many the run has in all, after a budget shortened it or its hook ended it.
        loss: mean loss of each finished epoch.
        candidates: models that a repair chose from, the suspect first; only some repairs make any.
        sweeps: choices that were made on clean samples; only some repairs make any.
        notes: sentences that a report must show.
    """

    epochs: int
    loss: list[float] = field(default_factory=list)
    candidates: tuple[Candidate, ...] = ()
    sweeps: tuple[Sweep, ...] = ()
    notes: tuple[str, ...] = ()
