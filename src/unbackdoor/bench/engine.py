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


class Engine:
    """A running Ray, while its context lasts.

    A cluster that goes away while it lasts is an OutputError of whatever is asked of it.

    Args:
        address: of a cluster; None: `$RAY_ADDRESS`, or a Ray of our own on this machine.
        cpus: cores that a cell gets; None: all of the smallest machine, or its share by GPUs.
        gpus: GPUs that a cell gets, such as 0.25; None: 1 where there are GPUs.
        device: "auto", "cpu" or "cuda", of every cell.
        work: folder for the states of running cells on this machine; those of a cluster use their own cache folders.
    """

    def __init__(
        self,
        *,
        address: str | None,
        cpus: int | None,
        gpus: float | None,
        device: Device,
        work: Path,
    ) -> None:
        if cpus is not None and cpus < 1:
            raise InputError(f"a cell needs at least 1 core, found --cpus-per-cell {cpus}")
        cluster.check_gpus(gpus, "--gpus-per-cell")
        self.address, self.device = address or os.environ.get("RAY_ADDRESS"), device
        self.work = None if self.address else work
        self._cpus, self._gpus = cpus, gpus

    def __enter__(self) -> Engine:
        self._ray, self._ours = cluster.start(self.address, NOT_INSTALLED)
        try:
            self._settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _settle(self) -> None:
        """Decide what a cell gets."""
        nodes = cluster.machines(self._ray)
        if self._gpus is None:
            self._gpus = 1.0 if self.device != "cpu" and any(node.get("GPU", 0) for node in nodes) else 0.0
        if self.device == "cuda" and not self._gpus:
            raise InputError("--device cuda needs --gpus-per-cell above 0, and Ray a machine with a GPU")
        if self._cpus is None:
            self._cpus = default_cpus(nodes, self._gpus)
        if not self._fitting(nodes):
            raise InputError(
                f"no machine has the {self._cpus} cores and {self._gpus:g} GPUs that a cell is to get; ask for less"
            )
        self._perform = self._ray.remote(perform).options(
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=cluster.RETRIES, scheduling_strategy="SPREAD"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ours:
            cluster.stop(self._ray)

    def _fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many cells fit on the machines at one time."""
        return sum(cluster.fitting(node, self._cpus or 1, self._gpus or 0.0) for node in nodes)

    def capacity(self) -> int:
        """Return how many cells run at one time on the machines that there are now; 1 while there are none."""
        return max(1, self._fitting(cluster.machines(self._ray)))

    def submit(self, cell: Cell, given: Mapping[str, bytes]) -> ObjectRef[CellOutcome]:
        """Let a cell run with the files of the one that it needs."""
        # Ray does not hide GPUs from a cell that asked for none.
        device = self.device if self._gpus else "cpu"
        with cluster.present():
            return self._perform.remote(cell, given, self.work, device, self._cpus)

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

        try:
            outcome: CellOutcome = self._ray.get(done)
            return outcome
        except RayError as error:
            # What was raised where the cell was to run, if that is known.
            reason = reason_of(getattr(error, "cause", None) or error)
            return CellOutcome(error=f"Ray lost it: {reason}", trace=str(error), started=time.time(), machine={})


def default_cpus(nodes: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Return the cores that a cell gets: all of the smallest machine, or its share if the GPUs bear several cells.

    Args:
        nodes: what each machine has, "CPU" and "GPU" among it.
        gpus: GPUs that a cell gets.
    """
    if gpus:
        nodes = [node for node in nodes if node.get("GPU", 0)]
    shares = [node["CPU"] / (max(1.0, node["GPU"] / gpus) if gpus else 1) for node in nodes]
    return max(1, int(min(shares, default=1)))
