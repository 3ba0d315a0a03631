"""The order of a grid's cells: which can be done now, which wait for another, which no longer can be."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Sequence

from unbackdoor.bench.cell import Cell


class Queue:
    """Cells that are to be done.

    Args:
        cells: all of a grid, each after the one that it needs.
        finished: keys of those that are done.
    """

    def __init__(self, cells: Sequence[Cell], finished: Container[str]) -> None:
        self._ready: deque[Cell] = deque()
        self._waiting: dict[str, list[Cell]] = defaultdict(list)
        for cell in cells:
            if cell.key in finished:
                continue
            if cell.needs is None or cell.needs.key in finished:
                self._ready.append(cell)
            else:
                self._waiting[cell.needs.key].append(cell)

    def __bool__(self) -> bool:
        return bool(self._ready)

    def take(self) -> Cell:
        """Return the next cell that can be done now."""
        return self._ready.popleft()

    def put_back(self, cell: Cell) -> None:
        """Take a cell again, as the next one."""
        self._ready.appendleft(cell)

    def finish(self, cell: Cell) -> None:
        """Let the cells that waited for this one be the next: a victim's results come before the next victim."""
        self._ready.extendleft(reversed(self._waiting.pop(cell.key, [])))

    def fail(self, cell: Cell) -> list[Cell]:
        """Give up the cells that waited for this one; return them, and those that waited for them."""
        lost = self._waiting.pop(cell.key, [])
        return [*lost, *(further for one in lost for further in self.fail(one))]
