"""`History`: what happened while a model was trained or repaired."""

from __future__ import annotations

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


@dataclass(kw_only=True)
class History:
    """What happened in training.

    Attributes:
        epochs: how many the run has in all, after a budget shortened it or its hook ended it.
        loss: mean loss of each finished epoch.
        sweeps: choices that were made on clean samples; only some repairs make any.
        notes: sentences that a report must show.
    """

    epochs: int
    loss: list[float] = field(default_factory=list)
    sweeps: tuple[Sweep, ...] = ()
    notes: tuple[str, ...] = ()
