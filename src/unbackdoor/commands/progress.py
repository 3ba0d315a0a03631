"""Progress on the terminal, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unbackdoor.commands.console import Console
from unbackdoor.text import clean_text

LONGEST = 2000
"""Characters of a note: some have names from files that strangers made."""


class RichProgress:
    """Bars with elapsed and remaining time; where standard error is no terminal, nothing but notes."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """Show a bar while the block runs; what is yielded moves it by one step."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(description, total=total)
            yield lambda: progress.advance(task)

    def note(self, text: str) -> None:
        """Show one line."""
        self.console.print(clean_text(text, LONGEST), style="dim", markup=False, highlight=False)
