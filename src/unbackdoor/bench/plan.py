"""What a grid will do, and how long that will take, judged by cells that were done before."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from unbackdoor.bench.cell import Cell, Domain, Label
from unbackdoor.bench.queue import Queue
from unbackdoor.bench.store import Record


@dataclass(frozen=True)
class Step:
    """A cell of a plan.

    Attributes:
        cell: what is to be done.
        cached: whether it is done already.
        seconds: how long it will take, 0 if it is cached; None: nothing like it has been done yet.
    """

    cell: Cell
    cached: bool
    seconds: float | None


def plan(cells: Sequence[Cell], records: Iterable[Record]) -> list[Step]:
    """Return the steps of a grid, in the order of its cells.

    A cell is expected to take as long as the median of the done cells that are most like it (see `Domain.alike`).
    """
    done = [record for record in records if not record.error]
    keys = {record.key for record in done}
    levels = {kind: [_medians(done, kind, names) for names in kind.alike] for kind in {type(c.domain) for c in cells}}
    steps = []
    for cell in cells:
        cached = cell.key in keys
        expected = None if cached else _expected(cell, levels[type(cell.domain)])
        steps.append(Step(cell, cached, 0.0 if cached else expected))
    return steps


def total_seconds(steps: Iterable[Step]) -> tuple[float, int]:
    """Return the sum of what is expected, and the number of steps of which nothing is known."""
    expected = [step.seconds for step in steps]
    return sum(seconds for seconds in expected if seconds is not None), expected.count(None)


def seconds_until_done(cells: Sequence[tuple[Cell, float]], at_once: int, overhead: float = 0.0) -> float:
    """Return the seconds until all cells are done, in the bench's own order: each after the one that it needs.

    Args:
        cells: with the seconds of each; one that they need and that is not among them is done already.
        at_once: how many run at one time, 1 or more.
        overhead: seconds of the one process that hands out a cell and takes in its result, one after another.
    """
    seconds = {cell.key: took for cell, took in cells}
    done_before = {cell.needed for cell, _ in cells}.difference(seconds)
    queue = Queue([cell for cell, _ in cells], done_before)
    running: list[tuple[float, int, Cell]] = []
    now, order = 0.0, itertools.count()
    while queue or running:
        while queue and len(running) < at_once:
            cell = queue.take()
            now += overhead
            heapq.heappush(running, (now + seconds[cell.key], next(order), cell))
        ended, _, cell = heapq.heappop(running)
        now = max(now, ended)
        queue.finish(cell)
    return now


def _expected(cell: Cell, levels: Sequence[Mapping[Hashable, float]]) -> float | None:
    for names, medians in zip(cell.domain.alike, levels, strict=True):
        if (found := medians.get(_group(cell.kind, cell.labels, names))) is not None:
            return found
    return None


def _medians(done: Iterable[Record], domain: type[Domain], names: Sequence[str]) -> dict[Hashable, float]:
    groups: dict[Hashable, list[float]] = defaultdict(list)
    for record in done:
        # The clock of a cell that went on after an interruption knows its last part only.
        if record.domain == domain.__name__ and not record.metrics.get("resumed"):
            groups[_group(record.kind, record.labels, names)].append(record.duration)
    return {group: statistics.median(times) for group, times in groups.items()}


def _group(kind: str, labels: Mapping[str, Label], names: Sequence[str]) -> Hashable:
    return (kind, *(labels.get(name) for name in names))
