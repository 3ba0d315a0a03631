"""The cells of a grid, one process each, with results that outlive the store of `unbackdoor bench`.

For programs that write one line of JSON a finished cell to results/NAME.jsonl and a table to results/NAME.md, where
NAME is the grid's. A finished cell is not done again, whatever the session that does them.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from record import HERE, Rows

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.worker import CellOutcome, Device, perform
from unbackdoor.files import write_bytes, write_json

Written = Callable[[str, int, Sequence[dict[str, Any]]], str]
"""From the grid's name, the number of cells wanted and the rows to the table."""


@dataclass(frozen=True)
class Kept:
    """What others need of a finished cell."""

    metrics: Mapping[str, float]
    machine: Mapping[str, str]
    files: Mapping[str, bytes]


class GridCells:
    """The cells of some kinds of a grid.

    Args:
        grid: YAML file.
        kinds: of the cells that become rows; what these need is done too.
        written: makes the table.
        work: folder for the states of interrupted cells, and for the files of cells that others need.
        device: to compute on.
        threads: of the processor.
        minutes: after which the cell in work is interrupted, to go on with the next time; None: when all are done.
    """

    def __init__(
        self,
        grid: Path,
        kinds: Collection[str],
        written: Written,
        work: Path,
        device: Device,
        threads: int,
        minutes: float | None = None,
    ) -> None:
        self.grid, self.kinds, self.written = grid, kinds, written
        self.work, self.device, self.threads = work, device, threads
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        name = grid.stem if device == "cpu" else f"{grid.stem}_{device}"
        self.rows, self.table = Rows(HERE / "results" / f"{name}.jsonl"), HERE / "results" / f"{name}.md"

    @cached_property
    def cells(self) -> list[Cell]:
        """Those of the kinds wanted."""
        return [cell for cell in read_grid(self.grid) if cell.kind in self.kinds]

    def left(self, only: Collection[str] = ()) -> list[Cell]:
        """Return the cells that are not done yet, of these methods, named with their options or without; or all."""
        done = {row["key"] for row in self.rows.read()}
        cells = [cell for cell in self.cells if cell.key not in done]
        return [cell for cell in cells if not only or not set(only).isdisjoint(_names(cell))]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, and before it what it needs and nobody has done; return the row.

        A cell that is refused has a row with the reason.
        """
        row: dict[str, Any] = {"key": cell.key, "kind": cell.kind, **cell.labels}
        try:
            given = self._kept(cell.needs) if cell.needs else None
            before = {"before": dict(given.metrics)} if given else {}
            found = self._kept(cell) if cell.kind == "victim" else self._perform(cell, given.files if given else {})
            row = {**row, **before, **found.metrics, **found.machine}
        except Refused as refused:
            row |= {**refused.outcome.machine, "error": refused.outcome.error}
        return self.rows.append(row)

    def _kept(self, cell: Cell) -> Kept:
        """Return what came of a cell that others need; it is done if need be."""
        folder = self.work / "kept" / cell.key
        told = folder / "told.json"
        if not told.exists():
            given = self._kept(cell.needs).files if cell.needs else {}
            found = self._perform(cell, given)
            for name, content in found.files.items():
                write_bytes(folder / "files" / name, content)
            # Last: without it nothing is taken for finished.
            write_json(told, {"metrics": dict(found.metrics), "machine": dict(found.machine)})
        content = json.loads(told.read_text())
        files = {path.name: path.read_bytes() for path in (folder / "files").iterdir()}
        return Kept(content["metrics"], content["machine"], files)

    def _perform(self, cell: Cell, given: Mapping[str, bytes]) -> CellOutcome:
        # A process of its own: the peak of memory is this cell's alone.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            left = None if self.end is None else max(0.1, self.end - time.monotonic())
            outcome = pool.submit(in_time, left, cell, given, self.work, self.device, self.threads).result()
        if outcome.trace:
            raise SystemExit(f"{cell.title}: {outcome.error}\n{outcome.trace}")
        if outcome.lasting:
            raise Refused(outcome)
        if outcome.error:
            raise SystemExit(f"{cell.title}: {outcome.error}")
        return outcome

    def write(self) -> None:
        """Write the table."""
        keys = {cell.key for cell in self.cells}
        rows = [row for row in self.rows.read() if row["key"] in keys]
        self.table.write_text(self.written(self.grid.name, len(self.cells), rows))


def _names(cell: Cell) -> tuple[str, str]:
    """Return a cell's method with its options and without."""
    method = str(cell.labels["method"])
    return method, method.partition(" ")[0]


class TimeIsUp(BaseException):
    """The minutes are over; like an interruption by hand, nothing of the work may take it for a failure."""


def in_time(seconds: float | None, *arguments: Any) -> CellOutcome:
    """Do a cell (see `perform`), and interrupt it after so many seconds: what it has saved lets it go on.

    Raises:
        TimeIsUp: it was interrupted.
    """
    if seconds is None:
        return perform(*arguments)

    def stop(*_: object) -> None:
        raise TimeIsUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        return perform(*arguments)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Refused(Exception):
    """A cell cannot be done, for a reason that belongs into the table.

    Args:
        outcome: with the reason.
    """

    def __init__(self, outcome: CellOutcome) -> None:
        super().__init__(outcome.error)
        self.outcome = outcome


def run_grid(description: str | None, kinds: Collection[str], written: Written, work: str) -> None:
    """Do the cells of a grid that are missing, as the command line says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--work", type=Path, default=Path(work), help="states of interrupted cells")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="stop after these; the next call goes on")
    parser.add_argument("--only", nargs="+", default=[], metavar="METHOD", help="leave the cells of others for later")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    machine = (arguments.device, arguments.threads)
    cells = GridCells(arguments.grid, kinds, written, arguments.work, *machine, arguments.minutes)
    if not arguments.table:
        do_all(cells, arguments.only)
    cells.write()
    print(cells.table)


def do_all(cells: GridCells, only: Collection[str] = ()) -> None:
    """Do the cells that are missing, of these methods or of all, one after the other, as long as there is time."""
    left = cells.left(only)
    for done, cell in enumerate(left):
        try:
            cells.run(cell)
        except TimeIsUp:
            print(f"time is up, {len(left) - done} of {len(cells.cells)} cells are left", flush=True)
            return
        print(cell.title, flush=True)
        cells.write()
