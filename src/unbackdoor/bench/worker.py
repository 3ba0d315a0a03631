"""Doing one cell, wherever that is: what is sent there, what comes back, and what it cost."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import platform
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock

from unbackdoor.bench.cell import Cell
from unbackdoor.data.cache import default_folder
from unbackdoor.errors import InputError, UnbackdoorError
from unbackdoor.files import write_bytes, write_json
from unbackdoor.training import Runtime

Device = Literal["auto", "cpu", "cuda"]

DETAILS = "details.json"
GIVEN = "given"


@dataclass(frozen=True, kw_only=True)
class CellOutcome:
    """What comes back of a cell.

    Attributes:
        metrics: the domain's.
        files: contents of the files, by name.
        error: why it failed, in a sentence; empty if it is done.
        lasting: whether it would fail again: what was asked for cannot be, and no disk was full.
        trace: where it failed, if that was a defect and no bad input.
        started: seconds since 1970.
        seconds: how long it took in all.
        machine: what it ran on and with, by name.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    error: str = ""
    lasting: bool = False
    trace: str = ""
    started: float
    seconds: float = 0.0
    machine: Mapping[str, str]


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: of the wall clock.
        cpu_seconds: of the processor, over all threads of this process.
        peak_mb: largest resident memory of this process meanwhile, libraries and data included, in MB; None: this
            system does not tell (it is no Linux).
        peak_gpu_mb: largest memory of tensors on the GPU meanwhile, in MB; None: it was not used.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float | None = None
    peak_gpu_mb: float | None = None

    def to_metrics(self) -> dict[str, float]:
        """Return what is known by name."""
        return {name: round(value, 2) for name, value in asdict(self).items() if value is not None}

    def add(self, earlier: Mapping[str, float]) -> None:
        """Count in a piece of work before this one, told by its metrics: times add up, the larger memory stays."""
        self.seconds += earlier.get("seconds", 0.0)
        self.cpu_seconds += earlier.get("cpu_seconds", 0.0)
        for name in ("peak_mb", "peak_gpu_mb"):
            known = [peak for peak in (getattr(self, name), earlier.get(name)) if peak is not None]
            setattr(self, name, max(known, default=None))


@contextmanager
def measured() -> Iterator[Cost]:
    """Yield what the block will have cost when it is left. One block inside another would take the outer's memory."""
    cost = Cost()
    forgotten = forget_peaks()
    start, busy = time.perf_counter(), time.process_time()
    yield cost
    cost.seconds, cost.cpu_seconds = time.perf_counter() - start, time.process_time() - busy
    if forgotten:
        found = peaks()
        cost.peak_mb, cost.peak_gpu_mb = found["peak_mb"], found.get("peak_gpu_mb")


def perform(
    cell: Cell,
    given: Mapping[str, bytes],
    work: Path | None,
    device: Device,
    threads: int,
    keep_optional: bool = False,
) -> CellOutcome:
    """Do a cell; whatever goes wrong in it is part of the outcome.

    Args:
        cell: what to do.
        given: the files of the cell that it needs.
        work: folder in which every cell has one of its own while it runs. What an interrupted cell leaves there lets
            the next attempt go on; a finished or failed one leaves nothing. None: in the cache folder of this machine.
        device: to compute on, of this machine.
        threads: of the processor.
        keep_optional: whether files that are kept on request only (`Result.optional`) come back. They are dropped here
            and not where they would be thrown away: a repaired model is many megabytes on its way.
    """
    place = work or default_folder() / "cells"
    folder, lock = place / cell.key, place / f"{cell.key}.lock"
    place.mkdir(parents=True, exist_ok=True)
    # A bench that was killed may still have this cell running somewhere, or another bench on the same cluster.
    with FileLock(lock):
        outcome = _perform(cell, given, folder, device, threads, keep_optional)
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
    return outcome


def _perform(
    cell: Cell, given: Mapping[str, bytes], folder: Path, device: Device, threads: int, keep_optional: bool
) -> CellOutcome:
    started, begin = time.time(), time.perf_counter()
    machine: dict[str, str] = {"host": platform.node()}
    try:
        runtime = Runtime(device=device, threads=threads)
        told = runtime.describe()
        machine |= {name: told[name] for name in ("device", "threads", "unbackdoor", "torch", "python")}
        for name, content in given.items():
            write_bytes(folder / GIVEN / name, content)
        result = cell.domain.run(cell, folder / GIVEN, folder, runtime)
        write_json(folder / DETAILS, dict(result.details))
        dropped = frozenset[str]() if keep_optional else result.optional
        wanted = {name: path for name, path in result.files.items() if name not in dropped}
        files = {name: path.read_bytes() for name, path in {**wanted, DETAILS: folder / DETAILS}.items()}
        outcome = CellOutcome(metrics=result.metrics, files=files, started=started, machine=machine)
    except UnbackdoorError as error:
        reason = str(error) or type(error).__name__
        lasting = isinstance(error, InputError)
        outcome = CellOutcome(error=reason, lasting=lasting, started=started, machine=machine)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        outcome = CellOutcome(error=reason, trace=traceback.format_exc(), started=started, machine=machine)
    return replace(outcome, seconds=time.perf_counter() - begin)


def details_of(given: Path) -> dict[str, Any]:
    """Return the details of the cell whose files are in the folder."""
    return dict(json.loads((given / DETAILS).read_bytes()))


def forget_peaks() -> bool:
    """Let `peaks` count from here on; return whether this system can (Linux).

    One process does many cells. What earlier ones left unused goes back to the system first: the mark falls only to
    what is held now, and a small cell after a large one would be told to need as much.
    """
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    # The GNU C library keeps what is freed; other ones have no such call.
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
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
