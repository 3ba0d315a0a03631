"""What the bench itself costs: cells that do nothing, the plan of 10,000 cells, and the leaderboard of 10,000 cells.

Writes results/bench_overhead.json and results/bench_overhead.md. The aims are 0.15 s a cell on one machine after
start-up, 5 s for the plan (of the whole command, with a store of 10,000 finished cells), and 3 s until the page can be
used in Chromium. It also measures whether one cell with all
cores or several with one core each get more done here.

    python benchmarks/bench_overhead.py
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from record import HERE, chromium, commit, machines

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.bench.engine import Engine
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.leaderboard import leaderboard
from unbackdoor.bench.plan import plan
from unbackdoor.bench.run import Bench
from unbackdoor.bench.store import Record, Store
from unbackdoor.bench.table import cell_table
from unbackdoor.bench.worker import CellOutcome
from unbackdoor.located import Located
from unbackdoor.report.leaderboard import write_leaderboard
from unbackdoor.training import Runtime, Silent

CELLS = 100
"""That do nothing."""

METRICS = [
    *(f"{share}{end}" for share in ("acc", "asr", "ra") for end in ("", "_low", "_high")),
    *("der", "rounds", "seconds", "cpu_seconds", "peak_mb"),
]
"""Of a cell of image classifiers."""

MANY = 10_000
GRID = """
data: digits
attacks: [BadNets, Blended, SIG, WaNet, LF, SSBA, TrojanNN, InputAware, BPP, FTrojan]
poison_rates: [0.01, 0.05, 0.1]
purify: [FT, FTSAM, SAU, {name: FT, epochs: 50}, {name: FTSAM, epochs: 50}, {name: SAU, rounds: 50}]
clean_sizes: [100, 500, 1000]
seeds: [%s]
"""
"""19 cells for each attack, poison rate and seed; the attacks without a poison rate once."""

BOUND = """
data: digits
networks: {name: PreActResNet18, width: 16}
attacks: [None]
recipe: {epochs: 3, learning_rate: 0.05, ema: 0}
seeds: [0, 1, 2, 3]
"""


class Nothing(Domain):
    """Cells that do nothing."""

    def cells(self, grid: Located) -> list[Cell]:
        """Return no cell: they are made here."""
        return []

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Do nothing."""
        return Result(metrics={"acc": 1.0})


def nothing(count: int) -> list[Cell]:
    """Return cells that do nothing, for each ten of them a victim that they need."""
    cells: list[Cell] = []
    for number in range(count):
        needs = None if number % 10 == 0 else cells[number - number % 10]
        kind = "purify" if needs else "victim"
        labels = {"number": float(number)}
        cells.append(Cell(domain=Nothing(), kind=kind, labels=labels, recipe=labels, work=None, needs=needs))
    return cells


def seconds_a_cell(folder: Path) -> dict[str, float]:
    """Return start-up, and the time a cell takes after it."""
    begin = time.perf_counter()
    store = Store(None, folder)
    with engine(folder) as started:
        bench = Bench(store, started, Silent())
        bench.run(nothing(10))
        ready = time.perf_counter()
        cells = nothing(CELLS + 10)
        summary = bench.run(cells)
        assert summary.done == CELLS, summary
        took = time.perf_counter() - ready
    return {"start-up, seconds": ready - begin, "a cell that does nothing, seconds": took / CELLS}


def seconds_of_the_command(folder: Path) -> dict[str, float]:
    """Return how long a store of 10,000 finished cells takes to read, and the plan of a grid as a command."""
    cells = read_grid(folder.parent / "grid.yaml")
    store = Store(None, folder)
    outcome = CellOutcome(metrics=dict.fromkeys(METRICS, 0.5), started=time.time(), machine={"device": "none"})
    pattern = store.add(cells[0], outcome)
    copy_runs(folder / "mlflow.db", pattern.run, cells[1:MANY])
    begin = time.perf_counter()
    count = len(store.records())
    read = time.perf_counter() - begin
    words = ["bench", str(folder.parent / "grid.yaml"), "--work", str(folder), "--plan", "--json"]
    begin = time.perf_counter()
    answer = subprocess.run([sys.executable, "-m", "unbackdoor.cli", *words], check=True, capture_output=True)
    planned = time.perf_counter() - begin
    assert json.loads(answer.stdout)["cached"] == MANY
    return {
        "runs in the store": count,
        "to read them, seconds": read,
        "`unbackdoor bench --plan` with them, seconds": planned,
    }


def copy_runs(database: Path, run: str, cells: Sequence[Cell]) -> None:
    """Copy a run for each cell, with all of its figures: to log 10,000 of them one by one takes long."""
    with sqlite3.connect(database) as store:
        for table in ("runs", "tags", "params", "metrics", "latest_metrics"):
            found = store.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run,))
            names = [column[0] for column in found.description]
            rows = [dict(zip(names, row, strict=True)) for row in found]
            copies = [told(row, cell) for cell in cells for row in rows]
            places = ", ".join("?" * len(names))
            store.executemany(f"INSERT INTO {table} VALUES ({places})", [tuple(one.values()) for one in copies])
    store.close()


def told(row: dict[str, Any], cell: Cell) -> dict[str, Any]:
    """Return a row of a run as that of another cell."""
    tags = {"key": cell.key, "labels": json.dumps(dict(cell.labels)), "kind": cell.kind}
    changed = {"run_uuid": cell.key[:32]}
    named = str(row.get("key")).removeprefix("unbackdoor.")
    if named != row.get("key") and named in tags:
        changed["value"] = tags[named]
    return {**row, **changed}


def engine(folder: Path, cpus: int | None = None) -> Engine:
    """Return an engine on this machine."""
    return Engine(address=None, cpus=cpus, gpus=None, device="cpu", work=folder / "cells")


def seconds_to_plan(folder: Path) -> dict[str, float]:
    """Return how long the plan of a large grid takes, with as many finished cells in the store's answer."""
    path = folder / "grid.yaml"
    begin = time.perf_counter()
    cells = read_grid(path)
    read = time.perf_counter() - begin
    records = [finished(cell) for cell in cells[: len(cells) // 2]]
    begin = time.perf_counter()
    steps = plan(cells, records)
    planned = time.perf_counter() - begin
    assert sum(step.cached for step in steps) == len(records)
    return {"cells of the large grid": len(cells), "to read it, seconds": read, "to plan it, seconds": planned}


def finished(cell: Cell) -> Record:
    """Return the record of a cell, with invented figures."""
    draw = random.Random(cell.key)
    metrics = {name: draw.random() for name in ("acc", "asr", "ra", "der")} | {"seconds": 60.0, "peak_mb": 900.0}
    return Record(
        key=cell.key,
        run=cell.key[:32],
        domain="Images",
        kind=cell.kind,
        labels=cell.labels,
        metrics=metrics,
        error="",
        machine={"device": "invented"},
        needs="",
        duration=61.0,
    )


def seconds_to_open(folder: Path) -> dict[str, float]:
    """Return how long Chromium needs until the page of a large leaderboard has its tables."""
    path = folder / "leaderboard.html"
    cells = itertools.islice(itertools.cycle(read_grid(folder / "grid.yaml")), MANY)
    begin = time.perf_counter()
    write_leaderboard(path, leaderboard(cell_table(map(finished, cells)), "Invented"))
    made = time.perf_counter() - begin
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page()
        begin = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("table tbody tr")
        opened = time.perf_counter() - begin
        browser.close()
    return {"to make its page, seconds": made, "to open it, seconds": opened, "its size, MB": path.stat().st_size / 1e6}


def trainings(folder: Path) -> Iterator[tuple[str, float]]:
    """Yield how long four small trainings take, one at a time with all cores or each with one core."""
    path = folder / "trainings.yaml"
    path.write_text(BOUND)
    for name, cpus in (
        ("four trainings, all cores each, seconds", os.cpu_count()),
        ("four trainings, one core each, seconds", 1),
    ):
        place = folder / f"cpus-{cpus}"
        store = Store(None, place)
        with engine(place, cpus) as started:
            begin = time.perf_counter()
            bench = Bench(store, started, Silent())
            summary = bench.run(read_grid(path))
            assert summary.done == 4, summary
            yield name, time.perf_counter() - begin


def main() -> None:
    """Measure everything and write the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "grid.yaml").write_text(GRID % ", ".join(map(str, range(20))))
        figures = seconds_a_cell(folder / "nothing")
        figures |= seconds_of_the_command(folder / "many")
        figures |= seconds_to_plan(folder)
        figures |= seconds_to_open(folder)
        figures |= dict(trainings(folder))
    figures = {name: round(value, 3) for name, value in figures.items()}
    machine = {**Runtime(device="cpu").describe(), "commit": commit()}
    (HERE / "results" / "bench_overhead.json").write_text(json.dumps({**machine, **figures}, indent=2) + "\n")
    lines = ["# What the bench costs", "", "Made by `python benchmarks/bench_overhead.py`.", ""]
    lines += [*machines([machine]), f"Commit: {machine['commit']}", ""]
    lines += ["| what | figure |", "|---|---:|", *(f"| {what} | {figure:g} |" for what, figure in figures.items())]
    (HERE / "results" / "bench_overhead.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
