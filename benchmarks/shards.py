"""Sifting file by file: rows a second and peak memory on 50,000, 200,000 and 800,000 rows.

CIFAR-10's training rows in files of 5,000, the same files again and again under other names; the kept victim that was
trained on BadNets is the model, so nothing is learned and what is measured is what grows with the rows. Time must be
linear in the rows and memory flat:

    python benchmarks/shards.py --data ../shared/data/cifar10
    python benchmarks/shards.py --rows 2000 4000 --file-rows 500 --results trial     # whether it runs at all
    python benchmarks/shards.py --table                                                  # only write the table

Writes one line of JSON a method and number of rows to shards.jsonl, and the table shards.md. What is finished is not
measured again. Each runs in a process of its own, with a Ray of its own on this machine; starting that is on no clock,
starting the processes that score is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

from pyarrow import Table, parquet
from record import HERE, Rows, machines

from unbackdoor.data.shards import Shards
from unbackdoor.models import load_model
from unbackdoor.options import options_of
from unbackdoor.sift import FCT, LossIsolation
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.sift.sharded import Workers, sift_shards
from unbackdoor.training import Runtime

VICTIM = HERE / "victims" / "BadNets-0.safetensors"
METHODS: tuple[RowSifter, ...] = (LossIsolation(), FCT(epochs=0, draws=2))
"""One pass through the network a row, and three."""

ROWS = (50_000, 200_000, 800_000)
FILE_ROWS = 5_000
"""Of which 50,000 rows are many to a worker: with few, one waits for the other at the end."""
PAUSE = 0.5
"""Seconds between looks at what processes take."""

FLAT, LINEAR = 1.1, 1.15
"""By which memory may grow, and seconds a further row, from the smallest number of rows to the largest."""


class Watch:
    """What this process and those that it started take, while the context lasts.

    Attributes:
        driver_mb: largest resident memory of this process.
        worker_mb: largest resident memory of any process that scores.
        all_mb: largest sum over all processes, Ray's own too; what they share is counted once.
        cpu_seconds: of all processes.
    """

    def __enter__(self) -> Watch:
        self.driver_mb = self.worker_mb = self.all_mb = 0.0
        self._cpu: dict[int, float] = {}
        self._before = {pid: cpu_of(pid) for pid in family()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def cpu_seconds(self) -> float:
        """Of all processes since the context was entered."""
        return sum(seconds - self._before.get(pid, 0.0) for pid, seconds in self._cpu.items())

    def _look(self) -> None:
        while not self._over.wait(PAUSE):
            total = 0.0
            for pid in family():
                self._cpu[pid] = cpu_of(pid)
                total += memory_of(pid, "smaps_rollup", "Pss")
                if pid == os.getpid():
                    self.driver_mb = max(self.driver_mb, memory_of(pid, "status", "VmHWM"))
                elif "MapWorker" in text_of(pid, "cmdline"):
                    self.worker_mb = max(self.worker_mb, memory_of(pid, "status", "VmHWM"))
            self.all_mb = max(self.all_mb, total)


def family() -> list[int]:
    """Return this process and all that it started."""
    parents = {int(path.name): stat_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found, new = set[int](), {os.getpid()}
    while new:
        found |= new
        new = {pid for pid, stat in parents.items() if stat and int(stat[1]) in new} - found
    return sorted(found)


def text_of(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def stat_of(pid: int) -> list[str]:
    """Return the fields of a process's status after its name; none if it is gone."""
    return text_of(pid, "stat").rsplit(")", 1)[-1].split()


def cpu_of(pid: int) -> float:
    fields = stat_of(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def memory_of(pid: int, name: str, field: str) -> float:
    """Return a field of a process's memory in MB; 0 if it is gone."""
    found = text_of(pid, name).split(f"{field}:")
    return int(found[1].split()[0]) / 1024 if len(found) > 1 else 0.0


def make_files(source: Path, folder: Path, each: int) -> list[Path]:
    """Write the training rows to files of so many, and return them; rows beyond the last whole file are left out."""
    found, held, count = list[Path](), list[Any](), 0
    (path,) = source.glob("train*.parquet")
    with parquet.ParquetFile(path) as rows:
        for batch in rows.iter_batches(min(each, 1000)):
            held.append(batch)
            count += len(batch)
            while count >= each:
                table = Table.from_batches(held)
                found.append(folder / f"part-{len(found)}.parquet")
                parquet.write_table(table[:each], found[-1], row_group_size=1000)
                held, count = table[each:].to_batches(), count - each
    return found


def repeat(files: Sequence[Path], folder: Path, number: int) -> None:
    """Fill a folder with so many files, which are the same ones again and again."""
    folder.mkdir()
    for one in range(number):
        (folder / f"train-{one:05}.parquet").symlink_to(files[one % len(files)])


def run(method: RowSifter, data: Path, out: Path, device: Any, threads: int) -> dict[str, Any]:
    """Sift, and return what it cost."""
    runtime = Runtime(device=device, threads=threads)
    shards = Shards.of(data)
    with Workers(address=None, gpus=None, runtime=runtime) as workers:
        start = time.perf_counter()
        with Watch() as watch:
            found = sift_shards(shards, method, runtime, workers, out, model=load_model(VICTIM).network)
        seconds = time.perf_counter() - start
        told = {"workers": workers.count, "files": len(shards.shards)}
    held = found.to_json()["held"]
    costs = {name: round(getattr(watch, name), 1) for name in ("driver_mb", "worker_mb", "all_mb", "cpu_seconds")}
    return {**told, "seconds": round(seconds, 1), **costs, "held": held, **runtime.describe()}


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--file-rows", type=int, default=FILE_ROWS)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="cores of each process that scores")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    # Rows of another machine or size of file are of another table.
    name = f"shards-{arguments.device}-{arguments.threads}-{arguments.file_rows}"
    name = "shards" if name == f"shards-cpu-1-{FILE_ROWS}" else name
    record = Rows(arguments.results / f"{name}.jsonl")
    done = {(row["method"], row["rows"]) for row in record.read()}
    left = [
        (method, rows) for method in METHODS for rows in arguments.rows if (type(method).__name__, rows) not in done
    ]
    if left and not arguments.table:
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            files = make_files(arguments.data, work, arguments.file_rows)
            for number, (method, rows) in enumerate(left):
                data, out = work / f"data-{number}", work / f"out-{number}"
                repeat(files, data, rows // arguments.file_rows)
                # A process of its own: the peak of memory is this run's alone.
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    cost = pool.submit(run, method, data, out, arguments.device, arguments.threads).result()
                row = {"method": type(method).__name__, "options": options_of(method), "rows": rows}
                record.append({**row, "file_rows": arguments.file_rows, **cost})
                print(row["method"], f"{rows:,} rows: {cost['seconds']} s, {cost['worker_mb']} MB", flush=True)
    table = arguments.results / f"{name}.md"
    table.write_text(written(record.read()))
    print(table)


def written(rows: list[dict[str, Any]]) -> str:
    """Return what was measured as Markdown."""
    lines = [
        "# Sifting file by file",
        "",
        "Made by `python benchmarks/shards.py`: `sift` through Ray Data on this machine, on CIFAR-10's training "
        "rows in files, repeated, with a model that was trained on BadNets (PreActResNet18 of width 16), so that "
        "nothing is learned: without one, `sift` first learns from a sample of at most 50,000 rows, which takes the"
        " same time and memory however many rows there are. LossIsolation takes one pass a row, FCT with two draws "
        "three. Seconds are from the first file to the last table, with the start of the processes that score (some"
        " seconds); rows/s beyond is that of the rows that a line has more than the one above. CPU seconds tell "
        "whether a row was disturbed: undisturbed, they are close to seconds times workers. Peak MB: the process "
        "that was started, the largest of those that score, and all together with Ray's own, with what they share "
        "counted once.",
        "",
        *machines(rows),
        "",
        "| method | rows | files | workers | seconds | CPU seconds | rows/s | rows/s beyond | peak MB, driver | worker"
        " | all |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    judged = []
    for method in dict.fromkeys(row["method"] for row in rows):
        own = sorted((row for row in rows if row["method"] == method), key=lambda row: row["rows"])
        rates = []
        for before, row in zip([None, *own], own):
            beyond = ""
            if before is not None and row["seconds"] > before["seconds"]:
                rates.append((row["rows"] - before["rows"]) / (row["seconds"] - before["seconds"]))
                beyond = f"{rates[-1]:,.0f}"
            numbers = [f"{row['rows']:,}", row["files"], row["workers"], row["seconds"], row["cpu_seconds"]]
            speeds = [f"{row['rows'] / row['seconds']:,.0f}", beyond]
            memory = [f"{row[name]:,.0f}" for name in ("driver_mb", "worker_mb", "all_mb")]
            lines.append(f"| {' | '.join(map(str, [method, *numbers, *speeds, *memory]))} |")
        if len(rates) > 1:
            judged.append(_judged(method, own, rates[0] / rates[-1]))
    return "\n".join([*lines, "", *judged]) + "\n"


def _judged(method: str, rows: list[dict[str, Any]], slower: float) -> str:
    """Say whether memory is flat and time is linear, where a further row takes so many times as long in the end."""
    first, last = rows[0], rows[-1]
    grown = max(last[name] / first[name] for name in ("driver_mb", "worker_mb", "all_mb"))
    flat, linear = ("yes" if value <= aim else "no" for value, aim in ((grown, FLAT), (slower, LINEAR)))
    return (
        f"- {method}, {first['rows']:,} to {last['rows']:,} rows: memory grew to {grown:.2f} times at most (flat, up to"
        f" {FLAT:g}: {flat}); a further row took {slower:.2f} times as long at the end as at first (linear, up to"
        f" {LINEAR:g}: {linear})"
    )


if __name__ == "__main__":
    main()
