"""What the commands on molecules share."""

from __future__ import annotations

from unbackdoor.commands.workspace import Run
from unbackdoor.molecules.data import Chosen, choose_pairs
from unbackdoor.report import Fact, IntervalLike

ATTACK = "attack.json"
"""Name of the attack's file in a folder of poisoned pairs."""

GENERATOR = "model.safetensors"


def sources(data: str) -> list[str]:
    """Return the sources that an option names, separated by commas."""
    return [source.strip() for source in data.split(",") if source.strip()]


def open_pairs(data: str, test: str | None, clock: Run) -> Chosen:
    """Read pairs to train on and to test with, and note them in the record.

    Raises:
        DataError: see `choose_pairs`.
    """
    chosen = choose_pairs(sources(data), test)
    clock.inputs |= {
        f"training pairs of {chosen.train.name}": chosen.train.digest(),
        f"test pairs of {chosen.test.name}": chosen.test.digest(),
    }
    return chosen


def account(chosen: Chosen) -> list[Fact]:
    """Return what became of all rows, for a page."""
    return [Fact(name=str(number), value=line) for number, line in enumerate(chosen.sentences(), 1)]


def shown(interval: IntervalLike | None) -> str:
    """Return a share with its interval, for people."""
    if interval is None:
        return "nothing to measure"
    return f"{100 * interval.value:.1f} %  [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
