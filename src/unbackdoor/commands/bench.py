"""Run a grid of attacks, methods, data, networks and seeds; what is done already is not done again.

Finished cells are kept in an MLflow store, an SQLite file by default. Stop it at any time: at most the cells that were
running are lost, and even those go on from their last epoch on the same machine. Exit code 3 if a cell failed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.engine import Engine
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.plan import Step, seconds_until_done, total_seconds
from unbackdoor.bench.plan import plan as plan_of
from unbackdoor.bench.run import Bench, Summary
from unbackdoor.bench.store import Store
from unbackdoor.bench.worker import Device
from unbackdoor.commands.outcome import INCONCLUSIVE, Outcome
from unbackdoor.commands.progress import RichProgress
from unbackdoor.commands.workspace import writable_folder

RUNTIME = False
POSITIONAL = True

MOST_REASONS = 10
"""Failed cells whose reasons are shown; the store has all."""


def run(
    grid: Path,
    *,
    plan: bool = False,
    store: str | None = None,
    work: Path = Path("runs/bench"),
    address: str | None = None,
    device: Device = "auto",
    cpus_per_cell: int | None = None,
    gpus_per_cell: float | None = None,
    keep_models: bool = False,
) -> Outcome:
    """Run a grid.

    Args:
        grid: YAML file; see the documentation of grids.
        plan: only say what would be done, and how long it would take.
        store: an MLflow tracking server or database; by default $MLFLOW_TRACKING_URI, or an SQLite file in --work.
        work: folder for the default store, the files of its cells, and the states of running ones.
        address: a Ray cluster, such as ray://head:10001; by default this machine.
        device: of every cell.
        cpus_per_cell: cores of a cell; by default 2, or more where the memory bears fewer cells at a time.
        gpus_per_cell: GPUs of a cell, such as 0.25; by default 1 where there are GPUs.
        keep_models: whether repaired models are kept in the store; victims always are.
    """
    cells = read_grid(grid)
    engine = Engine(
        address=address,
        cpus=cpus_per_cell,
        gpus=gpus_per_cell,
        device=device,
        work=work.resolve() / "cells",
        keep_optional=keep_models,
    )
    kept = Store(store, writable_folder(work))
    if plan:
        return planned(grid.name, plan_of(cells, kept.records()), engine.foreseen())
    with engine:
        return ran(grid.name, kept.shown, Bench(kept, engine, RichProgress()).run(cells))


def planned(name: str, steps: Sequence[Step], at_once: int) -> Outcome:
    """Return what a plan says, where so many cells run at one time."""
    groups: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        groups[_group(step.cell)].append(step)
    left = [step for step in steps if not step.cached]
    wall = seconds_until_done([(step.cell, step.seconds or 0.0) for step in left], at_once)
    unknown = total_seconds(left)[1]
    return Outcome(
        title=f"plan of {name}",
        rows=[
            *((group, _sentence(inside)) for group, inside in groups.items()),
            ("in all, one cell at a time", _sentence(steps)),
            (f"in all, as many at a time as fit: {at_once}", _foretold(wall, unknown)),
        ],
        result={
            "cells": len(steps),
            "cached": len(steps) - len(left),
            "seconds": total_seconds(left)[0],
            "of unknown length": unknown,
            "at a time": at_once,
            "seconds with so many at a time": wall,
            "to do": [{"cell": step.cell.title, "key": step.cell.key, "seconds": step.seconds} for step in left],
        },
        sentence="Times are those of cells done before, on whatever machine that was.",
    )


def ran(name: str, store: str, summary: Summary) -> Outcome:
    """Return what a run did."""
    failed = list(summary.failed.items())
    rows = [("done", str(summary.done)), ("done before", str(summary.cached)), ("failed", str(len(failed)))]
    rows += [(f"failed: {title}", reason) for title, reason in failed[:MOST_REASONS]]
    if len(failed) > MOST_REASONS:
        rows.append(("failed", f"and {len(failed) - MOST_REASONS} more"))
    if summary.lost:
        rows.append(("not begun", f"{len(summary.lost)}, as the cells that they need failed"))
    return Outcome(
        code=INCONCLUSIVE if failed else 0,
        title=f"grid {name}",
        rows=[*rows, ("store", store)],
        result={
            "done": summary.done,
            "cached": summary.cached,
            "failed": summary.failed,
            "not begun": summary.lost,
            "store": store,
        },
        sentence="Failed cells are tried again by the same command." if failed else "",
    )


def _group(cell: Cell) -> str:
    return " ".join(filter(None, (cell.kind, str(cell.labels.get("method") or ""))))


def _sentence(steps: Sequence[Step]) -> str:
    seconds, unknown = total_seconds(steps)
    cached = sum(step.cached for step in steps)
    parts = [f"{len(steps) - cached} to do", f"{cached} done"]
    if seconds:
        parts.append(f"about {_duration(seconds)}")
    if unknown:
        parts.append(f"{unknown} of unknown length: nothing like them has been done yet")
    return ", ".join(parts)


def _foretold(seconds: float, unknown: int) -> str:
    without = f", without the {unknown} of unknown length" if unknown else ""
    return f"about {_duration(seconds)}{without}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
