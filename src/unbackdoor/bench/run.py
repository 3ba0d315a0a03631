"""Running a grid: every cell that is not in the store yet, on whatever machines there are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
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
        locks: folder, common to all benches on this machine that share the store.
        keep_models: whether files that are kept only on request are kept.
        progress: how progress is shown.
    """

    def __init__(self, store: Store, engine: Engine, locks: Path, *, keep_models: bool, progress: Progress) -> None:
        self.store, self.engine, self.locks = store, engine, locks
        self.keep_models, self.progress = keep_models, progress

    def run(self, cells: Sequence[Cell]) -> Summary:
        """Do every cell that is not done yet, and return what came of it.

        A cell that another bench is doing is waited for; if that bench dies, the cell is done here.

        Raises:
            OutputError: the store does not work.
        """
        self.locks.mkdir(parents=True, exist_ok=True)
        self.records = {record.key: record for record in self.store.records() if not record.error}
        self.last: tuple[str, Mapping[str, bytes]] | None = None
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
            lock = FileLock(self.locks / f"{cell.key}.lock")
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
            given = self._files(cell.needs) if cell.needs else {}
        except InputError as error:
            self._keep(cell, CellOutcome(error=str(error), started=time.time(), machine={}))
            return False
        self.running[self.engine.submit(cell, given)] = cell, lock
        return True

    def _collect(self) -> None:
        """Wait for cells and keep what came of them."""
        for reference in self.engine.wait(list(self.running), PATIENCE):
            cell, lock = self.running.pop(reference)
            outcome = self.engine.result(reference)
            if not self.keep_models:
                kept = {name: content for name, content in outcome.files.items() if name not in outcome.optional}
                outcome = replace(outcome, files=kept)
            self._keep(cell, outcome)
            unlock(lock)
        if not self.queue:
            while self.elsewhere:
                self.queue.put_back(self.elsewhere.pop())

    def _files(self, victim: Cell) -> Mapping[str, bytes]:
        """Return the files of a cell that others need; those of the last one are remembered."""
        if self.last is None or self.last[0] != victim.key:
            self.last = victim.key, self._patiently(partial(self.store.files, self.records[victim.key]))
        return self.last[1]

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
        self.records[cell.key] = record
        self.queue.finish(cell)
        self.step()
        self.progress.note(f"{cell.title}: {_measured(record)}")

    def _fail(self, cell: Cell, reason: str) -> None:
        lost = self.queue.fail(cell)
        self.summary.failed[cell.title] = reason
        self.summary.lost += [one.title for one in lost]
        for _ in (cell, *lost):
            self.step()
        self.progress.note(f"{cell.title}: failed: {reason}")


SHOWN = {"tpr_at_1": "TPR at FPR 1 %"}
"""Names of metrics for people, where they are not the same in capitals."""


def _measured(record: Record) -> str:
    shown = [
        f"{SHOWN.get(name, name.upper())} {100 * record.metrics[name]:.2f} %"
        for name in ("acc", "asr", "ra", "der", "auroc", "tpr_at_1", "fpr")
        if name in record.metrics
    ]
    return ", ".join([*shown, f"{record.metrics['seconds']:.0f} s"] if "seconds" in record.metrics else shown) or "done"
