"""The terminal, as all commands write to it."""

from __future__ import annotations

from typing import NoReturn

import rich.console


class Console(rich.console.Console):
    """Rich's console, but a reader that went away is an ordinary error; Rich would exit with 1, "backdoored"."""

    def on_broken_pipe(self) -> NoReturn:
        """Raise what Python raises for it."""
        raise BrokenPipeError
