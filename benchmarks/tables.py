"""What the tables of grids share: means over attacks, and figures for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Return the mean over attacks of the means over seeds of what was measured; None if nothing was."""
    rows = [row for row in rows if name in row]
    attacks = sorted({row["attack"] for row in rows})
    means = [statistics.mean(row[name] for row in rows if row["attack"] == attack) for attack in attacks]
    return statistics.mean(means) if means else None


def all_measured(rows: Sequence[Row], attacks: int, seeds: int) -> bool:
    """Return whether there is a row for each of so many attacks with each of so many seeds."""
    return len({(row["attack"], row["seed"]) for row in rows}) >= attacks * seeds


def disturbed(row: Mapping[str, Any]) -> bool:
    """Return whether something else ran beside a row: it had less of the processor than its threads could use."""
    return bool(row["cpu_seconds"] < 0.9 * int(row["threads"]) * row["seconds"])


def percent(share: float | None) -> str:
    """Return a share in percent, or nothing."""
    return "" if share is None else f"{100 * share:.2f}"


def interval(row: Row, name: str) -> str:
    """Return a share in percent with its interval, or nothing if it was not measured."""
    if name not in row:
        return ""
    return f"{percent(row[name])} [{percent(row[f'{name}_low'])}, {percent(row[f'{name}_high'])}]"


def error(value: float | None) -> str:
    """Return a squared error, or nothing."""
    return "" if value is None else f"{value:.5f}"


def clocks(row: Mapping[str, float]) -> list[str]:
    """Return seconds and processor seconds; the clock of a resumed row knows its last part only."""
    return [f"{row[name]:.0f}" if name in row else "resumed" for name in ("seconds", "cpu_seconds")]


def refusals(rows: Sequence[Row]) -> list[str]:
    """Return a line for each cell that was refused, with the reason."""
    return [
        f"- {row['method'] or row['kind']} on {row['attack']}, seed {row['seed']:g}: {row['error']}." for row in rows
    ]
