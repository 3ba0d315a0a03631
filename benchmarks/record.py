"""What the programs here share: rows of finished work, and what each of them cost."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unbackdoor.bench.worker import Cost, measured

__all__ = ["HERE", "Rows", "chromium", "commit", "machines", "measured", "share"]

HERE = Path(__file__).parent


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
        costs = {
            "seconds": round(cost.seconds, 1),
            "cpu_seconds": round(cost.cpu_seconds, 1),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
        return self.append({**row, **costs})

    def append(self, row: dict[str, Any]) -> dict[str, Any]:
        """Append a row, with the date and the commit; return it."""
        complete = {**row, "date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit()}
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


def chromium() -> str:
    """Return the browser of this machine."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("there is no Chromium here")
    return found


def commit() -> str:
    """Return the commit of the checkout, in short."""
    answer = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=False, capture_output=True, text=True, cwd=HERE
    )
    return answer.stdout.strip() or "unknown"
