"""Where cells run: processes of Ray, on this machine or on a cluster. They see no store, only what they are sent."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from unbackdoor import cluster
from unbackdoor.bench import NOT_INSTALLED
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.worker import CellOutcome, Device, perform
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError

if TYPE_CHECKING:
    from ray import ObjectRef

GPUS = "--gpus-per-cell"

THREADS = 2
"""Cores of a cell where a machine has more: small networks gain little from a third."""

CELL_BYTES = 3e9
"""Memory that a cell may need: the largest measured one, SAU on CIFAR-10 at width 16, takes 2.1e9."""


class Engine:
    """A running Ray, while its context lasts.

    A cluster that goes away while it lasts is an OutputError of whatever is asked of it.

    Args:
        address: of a cluster; None: `$RAY_ADDRESS`, or a Ray of our own on this machine.
        cpus: cores that a cell gets; None: see `share`.
        gpus: GPUs that a cell gets, such as 0.25; None: 1 where there are GPUs.
        device: "auto", "cpu" or "cuda", of every cell.
        work: folder for the states of running cells on this machine; those of a cluster use their own cache folders.
        keep_optional: whether cells send the files that are kept on request only (see `Result.optional`).
    """

    def __init__(
        self,
        *,
        address: str | None,
        cpus: int | None,
        gpus: float | None,
        device: Device,
        work: Path,
        keep_optional: bool = False,
    ) -> None:
        if cpus is not None and cpus < 1:
            raise InputError(f"a cell needs at least 1 core, found --cpus-per-cell {cpus}")
        cluster.check_gpus(gpus, GPUS)
        self.address, self.device = address or os.environ.get("RAY_ADDRESS"), device
        self.work = None if self.address else work
        self.keep_optional = keep_optional
        self._wanted = cpus, gpus

    def __enter__(self) -> Engine:
        self._ray, self._ours = cluster.start(self.address, NOT_INSTALLED)
        try:
            self._cpus, self._gpus = share(cluster.machines(self._ray), *self._wanted, self.device)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        self._perform = self._ray.remote(perform).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=cluster.RETRIES, scheduling_strategy="SPREAD"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ours:
            cluster.stop(self._ray)

    def capacity(self) -> int:
        """Return how many cells run at one time on the machines that there are now; 1 while there are none."""
        return max(1, at_once(cluster.machines(self._ray), self._cpus, self._gpus))

    def foreseen(self) -> int:
        """Return how many cells would run at one time: a cluster is asked, and on this machine no Ray is started.

        Raises:
            InputError: there is no such cluster, or no machine has what a cell is to get.
        """
        if self.address:
            with self:
                return self.capacity()
        here = [cluster.this_machine()]
        return at_once(here, *share(here, *self._wanted, self.device))

    def put(self, files: Mapping[str, bytes]) -> ObjectRef[Mapping[str, bytes]]:
        """Hand files to Ray once, for all cells that start from them; they are kept while the answer is."""
        with cluster.present():
            reference: ObjectRef[Mapping[str, bytes]] = self._ray.put(files)
        return reference

    def submit(self, cell: Cell, given: ObjectRef[Mapping[str, bytes]] | None) -> ObjectRef[CellOutcome]:
        """Let a cell run with the files of the one that it needs (see `put`); None: it needs none."""
        # Ray does not hide GPUs from a cell that asked for none.
        device = self.device if self._gpus else "cpu"
        with cluster.present():
            return self._perform.remote(
                cell, {} if given is None else given, self.work, device, self._cpus, self.keep_optional
            )

    def wait(self, running: Sequence[ObjectRef[CellOutcome]], seconds: float) -> list[ObjectRef[CellOutcome]]:
        """Return those that are done; wait for the first of them, or for this time if there is none."""
        if not running:
            time.sleep(seconds)
            return []
        with cluster.present():
            done, _ = self._ray.wait(list(running), num_returns=1, timeout=seconds)
        return list(done)

    def result(self, done: ObjectRef[CellOutcome]) -> CellOutcome:
        """Return what came of a cell; if its process was lost again and again, an outcome that says so."""
        from ray.exceptions import RayError

        with cluster.present():
            try:
                outcome: CellOutcome = self._ray.get(done)
                return outcome
            except RayError as error:
                # What was raised where the cell was to run, if that is known.
                reason = reason_of(getattr(error, "cause", None) or error)
                return CellOutcome(error=f"Ray lost it: {reason}", trace=str(error), started=time.time(), machine={})


def share(
    nodes: Sequence[Mapping[str, float]], cpus: int | None, gpus: float | None, device: Device
) -> tuple[int, float]:
    """Return the cores and GPUs that a cell gets.

    Args:
        nodes: what each machine has: "CPU", and "GPU" and "memory" (bytes) if that is known.
        cpus: cores that were asked for; None: see `default_cpus`.
        gpus: GPUs that were asked for; None: see `cluster.gpus_each`.
        device: of every cell.

    Raises:
        InputError: no machine has so much.
    """
    gpus = cluster.gpus_each(nodes, gpus, device, GPUS)
    if cpus is None:
        cpus = default_cpus(nodes, gpus)
    if not at_once(nodes, cpus, gpus):
        raise InputError(f"no machine has the {cpus} cores and {gpus:g} GPUs that a cell is to get; ask for less")
    return cpus, gpus


def at_once(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """Return how many cells fit on the machines at one time."""
    return sum(cluster.fitting(node, cpus, gpus) for node in nodes)


def default_cpus(nodes: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Return the cores that a cell gets if nobody says it.

    On GPUs, its share of the machine. Otherwise `THREADS`, or more where the memory bears fewer cells (`CELL_BYTES`).
    On two cores that is one cell at a time, though two with one thread each take about a tenth less time in sum
    (benchmarks/results/bench_overhead.md): so a cell's seconds, and what it does within its budget, are those of a
    machine that does nothing else.

    Args:
        nodes: see `share`.
        gpus: GPUs that a cell gets.
    """
    if gpus:
        shares = [node["CPU"] / max(1.0, node["GPU"] / gpus) for node in nodes if node.get("GPU", 0)]
        return max(1, int(min(shares, default=1)))
    wanted = [_cores_of_a_cell(node) for node in nodes]
    # No machine is left out because another one has little memory.
    return max(1, min([max(wanted, default=1), *(int(node["CPU"]) for node in nodes)]))


def _cores_of_a_cell(node: Mapping[str, float]) -> int:
    cores = int(node["CPU"])
    by_memory = int(node["memory"] // CELL_BYTES) if "memory" in node else cores
    cells = max(1, min(cores // THREADS, by_memory))
    # The fewest cores with which no more cells fit, and what is left over divided among them.
    fewest = cores // (cells + 1) + 1
    return cores // (cores // fewest)
