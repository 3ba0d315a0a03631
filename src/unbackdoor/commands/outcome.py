"""What a command returns; the command line shows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_EVIDENCE, BACKDOORED, INCONCLUSIVE = 0, 1, 3
"""Exit codes of a scan; 2 is bad use or unreadable input. Kept for ever."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a command.

    Attributes:
        code: exit code.
        title: of the table.
        rows: name and value, as people read them.
        result: the same for programs, JSON values.
        sentence: what it means.
        page: the report, if one was written.
    """

    title: str
    rows: list[tuple[str, str]]
    result: dict[str, Any]
    code: int = 0
    sentence: str = ""
    page: Path | None = field(default=None)
