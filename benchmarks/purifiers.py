"""Every purifier on the kept victims: the cells of a grid, one process each, whatever the session that does them.

Writes one line of JSON a finished cell to results/NAME.jsonl and the table results/NAME.md, where NAME is the grid's.
A finished cell is not done again, though the store of `unbackdoor bench` be lost:

    python benchmarks/purifiers.py benchmarks/grids/purify-small.yaml
    python benchmarks/purifiers.py benchmarks/grids/purify-small.yaml --table     # only write the table
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines

from unbackdoor.bench.cell import Cell
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.worker import CellOutcome, Device, perform


class Bench:
    """A grid whose results outlive the store.

    Args:
        grid: YAML file.
        work: folder for the states of interrupted cells.
        device: to compute on.
        threads: of the processor.
    """

    def __init__(self, grid: Path, work: Path, device: Device, threads: int) -> None:
        self.grid, self.work, self.device, self.threads = grid, work, device, threads
        name = grid.stem if device == "cpu" else f"{grid.stem}_{device}"
        self.rows, self.table = Rows(HERE / "results" / f"{name}.jsonl"), HERE / "results" / f"{name}.md"
        self.victims: dict[str, CellOutcome] = {}

    @cached_property
    def cells(self) -> list[Cell]:
        """The repairs of the grid."""
        return [cell for cell in read_grid(self.grid) if cell.kind == "purify"]

    def left(self) -> list[Cell]:
        """Return the repairs that are not done yet."""
        done = {row["key"] for row in self.rows.read()}
        return [cell for cell in self.cells if cell.key not in done]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a repair, and measure its victim if no repair of it came before; return the row.

        A repair that its method refuses has a row with the reason.
        """
        assert cell.needs is not None
        if cell.needs.key not in self.victims:
            self.victims[cell.needs.key] = self._perform(cell.needs, {})
        victim = self.victims[cell.needs.key]
        outcome = self._perform(cell, victim.files)
        row = {"key": cell.key, **cell.labels, "before": victim.metrics, **outcome.metrics, **outcome.machine}
        if outcome.error:
            row["error"] = outcome.error
        return self.rows.append(row)

    def _perform(self, cell: Cell, given: Any) -> CellOutcome:
        # A process of its own: the peak of memory is this cell's alone.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            outcome = pool.submit(perform, cell, given, self.work, self.device, self.threads).result()
        if outcome.trace:
            raise SystemExit(f"{cell.title}: {outcome.error}\n{outcome.trace}")
        return outcome

    def write(self) -> None:
        """Write the table."""
        keys = {cell.key for cell in self.cells}
        rows = [row for row in self.rows.read() if row["key"] in keys]
        self.table.write_text(written(self.grid.name, len(self.cells), rows))


def main() -> None:
    """Do the cells that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/purifiers"), help="states of interrupted cells")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    bench = Bench(arguments.grid, arguments.work, arguments.device, arguments.threads)
    if not arguments.table:
        for cell in bench.left():
            bench.run(cell)
            print(cell.title, flush=True)
            bench.write()
    bench.write()
    print(bench.table)


def written(grid: str, wanted: int, rows: Sequence[dict[str, Any]]) -> str:
    """Return the repairs as Markdown: means of each method, then every cell."""
    lines = [
        f"# {grid}",
        "",
        f"Made by `python benchmarks/purifiers.py benchmarks/grids/{grid}`; {len(rows)} of {wanted} cells are done. DER"
        " is (1 + what ASR fell by - what ACC fell by) / 2, neither fall below 0; the best possible is what an ASR of 0"
        " at the victim's ACC would give. Seconds are of the wall clock without measuring; CPU seconds tell whether a"
        " row was disturbed: undisturbed, they are close to twice as many on two threads. Peak MB is the whole process"
        " with data and libraries.",
        "",
        *machines(list(rows)),
        "",
        "| method | clean | seeds | cells | ACC % | ACC fell by | ASR % | worst ASR % | RA % | DER % | best possible"
        " | seconds | peak MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    refused = [row for row in rows if "error" in row]
    rows = [row for row in rows if "error" not in row]
    groups = sorted({_group(row) for row in rows}, key=lambda group: (-_der(rows, group), group))
    lines += [_mean([row for row in rows if _group(row) == group]) for group in groups]
    lines += [
        "",
        "| victim | method | clean | seed | ACC % | ASR % | RA % | DER % | rounds | seconds | CPU seconds | peak MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += _cells(sorted(rows, key=lambda row: (row["data"], row["attack"], -row.get("der", 0), row["seed"])))
    if refused:
        lines += ["", *(f"- {row['method']} on {row['attack']}: {row['error']}." for row in refused)]
    return "\n".join(lines) + "\n"


def _group(row: dict[str, Any]) -> tuple[str, str, str, int]:
    return row["data"], row["network"], row["method"], row["clean_size"]


def _der(rows: Iterable[dict[str, Any]], group: tuple[Any, ...]) -> float:
    return statistics.mean(row.get("der", 0) for row in rows if _group(row) == group)


def _mean(rows: Sequence[dict[str, Any]]) -> str:
    """Return the line of one method: its means over victims and seeds."""
    mean = {name: statistics.mean(row[name] for row in rows) for name in ("acc", "asr", "ra", "der")}
    # The clock of a resumed cell knows its last part only, so that it has none.
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    fell = statistics.mean(row["before"]["acc"] - row["acc"] for row in rows)
    best = statistics.mean((1 + row["before"]["asr"]) / 2 for row in rows)
    worst = max(rows, key=lambda row: row["asr"])
    percents = (mean["acc"], fell, mean["asr"])
    fields = [
        *(rows[0]["method"], f"{rows[0]['clean_size']:g}", str(len({row["seed"] for row in rows})), str(len(rows))),
        *(f"{100 * value:.2f}" for value in percents),
        f"{100 * worst['asr']:.2f} ({worst['attack']})",
        *(f"{100 * value:.2f}" for value in (mean["ra"], mean["der"], best)),
        *(f"{statistics.mean(seconds):.0f}" if seconds else "", f"{max(row['peak_mb'] for row in rows):.0f}"),
    ]
    return f"| {' | '.join(fields)} |"


def _cells(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        fields = [
            *(row["attack"], row["method"], f"{row['clean_size']:g}", str(row["seed"])),
            *(f"{100 * row[name]:.2f}" for name in ("acc", "asr", "ra", "der")),
            *(
                f"{row[name]:.0f}" if name in row else "resumed"
                for name in ("rounds", "seconds", "cpu_seconds", "peak_mb")
            ),
        ]
        yield f"| {' | '.join(fields)} |"


if __name__ == "__main__":
    main()
