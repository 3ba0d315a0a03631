"""A domain whose cells do next to nothing, for tests of all that is around cells; worker processes can import it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.bench.worker import CellOutcome, details_of
from unbackdoor.errors import InputError
from unbackdoor.files import write_bytes
from unbackdoor.located import Located
from unbackdoor.training import Runtime

MADE, SEEN, LARGE, STATE = "made.txt", "seen.txt", "large.bin", "state"
"""Files: of every cell; of a cell that needs one, the other's `MADE`; kept on request only; of an interrupted cell."""


class Noop(Domain):
    """Numbered cells that do what their recipes say.

    A recipe has the cell's `number` and may have `seconds` (to sleep), `sentence` (of its error), and `fails`: "input"
    (raises an UnbackdoorError), "defect" (a ValueError), "forget" (a file that it promises is not there), "interrupt"
    (the first run is cut off by a KeyboardInterrupt), "die once" (its first run ends the process), "die" (every run
    does). The work is None, or a file to which every run adds the cell's key and its process.
    """

    alike = (("data", "method"), ("method",))

    def cells(self, grid: Located) -> list[Cell]:
        """Return as many victims as the grid's `count` says, each followed by its repair, of so many `seconds` each."""
        told = grid.items(("domain", "count", "seconds"))
        seconds = float(told["seconds"].number(0)) if "seconds" in told else 0.0
        return cells(int(told["count"].number(0, whole=True)), seconds=seconds)

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Return as metrics the cell's number, that of the cell that it needs, and whether it found its state."""
        number, fails = cell.recipe["number"], cell.recipe.get("fails")
        if cell.work is not None:
            with Path(cell.work).open("a") as counted:
                counted.write(f"{cell.key} {os.getpid()}\n")
        time.sleep(cell.recipe.get("seconds", 0))
        resumed = (folder / STATE).exists()
        write_bytes(folder / STATE, b"")
        sentence = cell.recipe.get("sentence", "told to fail")
        match fails:
            case "input":
                raise InputError(sentence)
            case "defect":
                raise ValueError(sentence)
            case "interrupt" if not resumed:
                raise KeyboardInterrupt
            case "die":
                os._exit(1)
            case "die once" if not resumed:
                os._exit(1)
        metrics = {"acc": 0.9, "number": float(number), "resumed": float(resumed)}
        files = {name: folder / name for name in (MADE, LARGE)}
        write_bytes(folder / LARGE, bytes(1000))
        if fails != "forget":
            write_bytes(folder / MADE, f"{cell.kind} {number}".encode())
        if cell.needs:
            metrics |= {"der": 0.5, "needed": float(details_of(given)["number"])}
            files[SEEN] = given / MADE
        return Result(metrics=metrics, details={"number": number}, files=files, optional=frozenset({LARGE}))


NOOP = Noop()


def victim(number: int, counted: Path | None = None, **recipe: Any) -> Cell:
    """Return a cell that needs no other.

    Args:
        number: of the cell; its seed in the labels.
        counted: file to which every run adds the cell's key.
        **recipe: what it is told, see `Noop`.
    """
    recipe = {"number": number, **recipe}
    return Cell(domain=NOOP, kind="victim", labels=labels(data="noop", seed=number), recipe=recipe, work=counted)


def repair(
    needs: Cell, number: int = 0, counted: Path | None = None, *, method: str = "Nothing", **recipe: Any
) -> Cell:
    """Return a cell that needs another one.

    Args:
        needs: the other.
        number: of the cell.
        counted: file to which every run adds the cell's key.
        method: label.
        **recipe: what it is told, see `Noop`.
    """
    return Cell(
        domain=NOOP,
        kind="purify",
        labels={**needs.labels, "method": method, "clean_size": 50},
        recipe={"number": number, "method": method, **recipe},
        work=counted,
        needs=needs,
    )


def cells(
    count: int,
    *,
    first: int = 0,
    counted: Path | None = None,
    fails: Mapping[int, str] | None = None,
    seconds: float = 0.0,
) -> list[Cell]:
    """Return so many victims, each followed by its repair.

    Args:
        count: of the victims.
        first: the first victim's number; that of a repair is its victim's.
        counted: file to which every run adds the cell's key.
        fails: how cells fail (see `Noop`), by their places in the list.
        seconds: that each takes.
    """
    made: list[Cell] = []

    def told() -> dict[str, Any]:
        how = (fails or {}).get(len(made))
        return {**({"fails": how} if how else {}), **({"seconds": seconds} if seconds else {})}

    for number in range(first, first + count):
        made.append(victim(number, counted, **told()))
        made.append(repair(made[-1], number, counted, **told()))
    return made


def times_run(counted: Path) -> Counter[str]:
    """Return how often each cell began, by key."""
    return Counter(key for key, _ in _runs(counted))


def processes_run(counted: Path) -> list[int]:
    """Return in which process each cell began, in the order of their beginnings."""
    return [int(process) for _, process in _runs(counted)]


def _runs(counted: Path) -> list[list[str]]:
    return [line.split() for line in counted.read_text().splitlines()] if counted.exists() else []


def outcome(
    *,
    metrics: Mapping[str, float] | None = None,
    files: Mapping[str, bytes] | None = None,
    error: str = "",
    trace: str = "",
) -> CellOutcome:
    """Return what comes back of a cell that took no time."""
    return CellOutcome(
        metrics=metrics or {},
        files=files or {},
        error=error,
        trace=trace,
        started=time.time(),
        machine={"device": "cpu (a)", "unbackdoor": "0.1.0"},
    )


def labels(**changes: Any) -> dict[str, Any]:
    """Return the labels of a cell of image classifiers, some of them changed."""
    return {
        "data": "digits",
        "network": "PreActResNet18",
        "attack": "BadNets",
        "poison_rate": 0.1,
        "training": "default",
        "precision": "bf16",
        "method": None,
        "clean_size": None,
        "budget": None,
        "seed": 0,
        **changes,
    }
