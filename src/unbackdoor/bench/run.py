"""Running a grid: every cell that is not in the store yet, on whatever machines there are."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from filelock import FileLock, Timeout

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.engine import Engine
from unbackdoor.bench.queue import Queue
from unbackdoor.bench.store import Record, Store
from unbackdoor.bench.worker import CellOutcome
from unbackdoor.errors import InputError, OutputError
from unbackdoor.files import unlock
from unbackdoor.training import Progress

if TYPE_CHECKING:
    from ray import ObjectRef

T = TypeVar("T")

PAUSES = (2.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Seconds before another attempt at a store that does not work."""

PATIENCE = 5.0
"""Seconds between looks at cells that another bench is doing."""


@dataclass
class Summary:
    """What a run of a grid did.

    Attributes:
        done: how many cells were done now.
        cached: how many were in the store before, or were done by another bench meanwhile.
        failed: titles of those that failed, with the reason.
        lost: titles of those that could not be begun, as the cell that they need failed.
    """

    done: int = 0
    cached: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)


class Bench:
    """One process that runs a grid.

    Args:
        store: of results.
        engine: entered already.
        progress: how progress is shown.
    """

    def __init__(self, store: Store, engine: Engine, progress: Progress) -> None:
        self.store, self.engine, self.progress = store, engine, progress

    def run(self, cells: Sequence[Cell]) -> Summary:
        """Do every cell that is not done yet, and return what came of it.

        A cell that another bench is doing is waited for; if that bench dies, the cell is done here.

        Raises:
            OutputError: the store does not work.
        """
        self.records = {record.key: record for record in self._patiently(self.store.records) if not record.error}
        self.given: dict[str, ObjectRef[Mapping[str, bytes]]] = {}
        self.users = Counter(cell.needed for cell in cells if cell.key not in self.records)
        self.queue, self.elsewhere = Queue(cells, self.records), list[Cell]()
        self.running: dict[ObjectRef[CellOutcome], tuple[Cell, FileLock]] = {}
        left = sum(cell.key not in self.records for cell in cells)
        self.summary = Summary(cached=len(cells) - left)
        with self.progress.bar("cells", left) as self.step:
            try:
                while self.queue or self.running or self.elsewhere:
                    self._fill()
                    self._collect()
            finally:
                for _, lock in self.running.values():
                    unlock(lock)
        return self.summary

    def _fill(self) -> None:
        """Start cells until no more fit, or none can be done now."""
        while self.queue and len(self.running) < self.engine.capacity():
            cell = self.queue.take()
            lock = FileLock(self.store.locks / f"{cell.key}.lock")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                self.elsewhere.append(cell)
                continue
            if not self._start(cell, lock):
                unlock(lock)

    def _start(self, cell: Cell, lock: FileLock) -> bool:
        """Start a cell; return False if another bench has done it meanwhile, or if it cannot be started."""
        if record := self._patiently(partial(self.store.find, cell.key)):
            self.summary.cached += 1
            self._finish(cell, record)
            return False
        try:
            given = self._given(cell.needs) if cell.needs else None
        except InputError as error:
            self._keep(cell, CellOutcome(error=str(error), started=time.time(), machine={}))
            return False
        self.running[self.engine.submit(cell, given)] = cell, lock
        return True

    def _collect(self) -> None:
        """Wait for cells and keep what came of them."""
        for reference in self.engine.wait(list(self.running), PATIENCE):
            cell, lock = self.running.pop(reference)
            self._keep(cell, self.engine.result(reference))
            unlock(lock)
        if not self.queue:
            while self.elsewhere:
                self.queue.put_back(self.elsewhere.pop())

    def _given(self, needed: Cell) -> ObjectRef[Mapping[str, bytes]]:
        """Return the files of a cell that others need, fetched and handed to Ray once for all of these."""
        if needed.key not in self.given:
            files = self._patiently(partial(self.store.files, self.records[needed.key]))
            self.given[needed.key] = self.engine.put(files)
        return self.given[needed.key]

    def _keep(self, cell: Cell, outcome: CellOutcome) -> None:
        """Put what came of a cell into the store."""
        record = self._patiently(partial(self.store.add, cell, outcome))
        if record.error:
            self._fail(cell, record.error)
        else:
            self.summary.done += 1
            self._finish(cell, record)

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Return the store's answer: if it gives none for a moment, that must not cost the work of hours."""
        for pause in PAUSES:
            try:
                return ask()
            except OutputError as error:
                self.progress.note(f"{error}; trying again in {pause:g} s")
                time.sleep(pause)
        return ask()

    def _finish(self, cell: Cell, record: Record) -> None:
        self._let_go(cell)
        self.records[cell.key] = record
        self.queue.finish(cell)
        self.step()
        self.progress.note(f"{cell.title}: {_measured(record)}")

    def _fail(self, cell: Cell, reason: str) -> None:
        lost = self.queue.fail(cell)
        self.summary.failed[cell.title] = reason
        self.summary.lost += [one.title for one in lost]
        for one in (cell, *lost):
            self._let_go(one)
            self.step()
        self.progress.note(f"{cell.title}: failed: {reason}")

    def _let_go(self, cell: Cell) -> None:
        """Let Ray forget the files from which a cell started, once no other cell will."""
        self.users[cell.needed] -= 1
        if not self.users[cell.needed]:
            self.given.pop(cell.needed, None)


SHOWN = {"tpr_at_1": "TPR at FPR 1 %"}
"""Names of metrics for people, where they are not the same in capitals."""


def _measured(record: Record) -> str:
    shown = [
        f"{SHOWN.get(name, name.upper())} {100 * record.metrics[name]:.2f} %"
        for name in ("acc", "asr", "ra", "der", "auroc", "tpr_at_1", "fpr")
        if name in record.metrics
    ]
    return ", ".join([*shown, f"{record.metrics['seconds']:.0f} s"] if "seconds" in record.metrics else shown) or "done"
