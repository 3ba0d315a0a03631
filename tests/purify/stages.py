"""Progress that is interrupted in one stage of a method that has several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from unbackdoor.training import Silent


class StopsIn(Silent):
    """Interrupts after so many steps of the bar with this description.

    Attributes:
        totals: steps that each bar announced.
    """

    def __init__(self, description: str, after: int) -> None:
        self.description, self.after = description, after
        self.totals: list[int] = []

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        self.totals.append(total)
        steps = 0

        def advance() -> None:
            nonlocal steps
            steps += 1
            if (description, steps) == (self.description, self.after):
                raise KeyboardInterrupt

        yield advance
