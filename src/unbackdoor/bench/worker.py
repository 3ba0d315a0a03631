"""Doing one cell, wherever that is: what is sent there, what comes back, and what it cost."""

from __future__ import annotations

import json
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from unbackdoor.bench.cell import Cell
from unbackdoor.data.cache import default_folder
from unbackdoor.errors import UnbackdoorError
from unbackdoor.files import write_bytes, write_json
from unbackdoor.training import Runtime

Device = Literal["auto", "cpu", "cuda"]

DETAILS = "details.json"
GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class CellOutcome:
    """What comes back of a cell.

    Attributes:
        metrics: the domain's, and those of `peaks`.
        files: contents of the files, by name.
        optional: see `Result`.
        error: why it failed, in a sentence; empty if it is done.
        trace: where it failed, if that was a defect and no bad input.
        started: seconds since 1970.
        seconds: how long it took in all.
        machine: what it ran on and with, by name.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    error: str = ""
    trace: str = ""
    started: float
    seconds: float = 0.0
    machine: Mapping[str, str]


@dataclass
class Cost:
    """Wall-clock and processor seconds of a piece of work."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def to_metrics(self) -> dict[str, float]:
        """Return both by name."""
        return {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}


@contextmanager
def measured() -> Iterator[Cost]:
    """Yield what the block will have cost when it is left."""
    cost = Cost()
    start, busy = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - busy


def perform(cell: Cell, given: Mapping[str, bytes], work: Path | None, device: Device, threads: int) -> CellOutcome:
    """Do a cell; whatever goes wrong in it is part of the outcome.

    Args:
        cell: what to do.
        given: the files of the cell that it needs.
        work: folder in which every cell has one of its own while it runs. What an interrupted cell leaves there lets
            the next attempt go on; a finished or failed one leaves nothing. None: in the cache folder of this machine.
        device: to compute on, of this machine.
        threads: of the processor.
    """
    place = work or default_folder() / "cells"
    folder, lock = place / cell.key, place / f"{cell.key}.lock"
    place.mkdir(parents=True, exist_ok=True)
    # A bench that was killed may still have this cell running somewhere, or another bench on the same cluster.
    with FileLock(lock):
        outcome = _perform(cell, given, folder, device, threads)
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
    return outcome


def _perform(cell: Cell, given: Mapping[str, bytes], folder: Path, device: Device, threads: int) -> CellOutcome:
    started, begin = time.time(), time.perf_counter()
    machine: dict[str, str] = {"host": platform.node()}
    try:
        forgotten = forget_peaks()
        runtime = Runtime(device=device, threads=threads)
        told = runtime.describe()
        machine |= {name: told[name] for name in ("device", "threads", "unbackdoor", "torch", "python")}
        for name, content in given.items():
            write_bytes(folder / GIVEN / name, content)
        result = cell.domain.run(cell, folder / GIVEN, folder, runtime)
        write_json(folder / DETAILS, dict(result.details))
        files = {name: path.read_bytes() for name, path in {**result.files, DETAILS: folder / DETAILS}.items()}
        metrics = {**result.metrics, **(peaks() if forgotten else {})}
        outcome = CellOutcome(metrics=metrics, files=files, optional=result.optional, started=started, machine=machine)
    except UnbackdoorError as error:
        outcome = CellOutcome(error=str(error) or type(error).__name__, started=started, machine=machine)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        outcome = CellOutcome(error=reason, trace=traceback.format_exc(), started=started, machine=machine)
    return replace(outcome, seconds=time.perf_counter() - begin)


def details_of(given: Path) -> dict[str, Any]:
    """Return the details of the cell whose files are in the folder."""
    return dict(json.loads((given / DETAILS).read_bytes()))


def forget_peaks() -> bool:
    """Let `peaks` count from here on, as one process does many cells; return whether this system can (Linux)."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peaks() -> dict[str, float]:
    """Return `peak_mb`, the largest resident memory of this process, and `peak_gpu_mb` if it used a GPU, in MB."""
    kilobytes = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    found = {"peak_mb": round(kilobytes / 1024, 1)}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found["peak_gpu_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found
