"""What the programs here share: rows of finished work, and what each of them cost."""

from __future__ import annotations

import json
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass
class Cost:
    """Wall-clock and processor seconds of a piece of work, rounded to a tenth."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """Yield what the block will have cost when it is left."""
    cost = Cost()
    start, busy = time.perf_counter(), _busy()
    yield cost
    cost.seconds = round(time.perf_counter() - start, 1)
    cost.cpu_seconds = round(_busy() - busy, 1)


class Rows:
    """A file with one line of JSON for each finished piece of work.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return the rows, oldest first."""
        return [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def add(self, row: dict[str, Any], cost: Cost) -> dict[str, Any]:
        """Append a row, with its cost, the date and the commit; return it."""
        complete = {
            **row,
            "seconds": cost.seconds,
            "cpu_seconds": cost.cpu_seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(complete) + "\n")
        return complete


def machines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the lines that say on what the rows were measured."""
    return sorted({f"Machine: {row['device']}, {row['threads']} threads, torch {row['torch']}" for row in rows})


def share(value: dict[str, float] | None) -> str:
    """Return a proportion in percent with its interval, or nothing."""
    if value is None:
        return ""
    return f"{100 * value['value']:.2f} [{100 * value['low']:.2f}, {100 * value['high']:.2f}]"


def _busy() -> float:
    """Return the processor seconds that this process has used."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _commit() -> str:
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    )
    return answer.stdout.strip() or "unknown"
