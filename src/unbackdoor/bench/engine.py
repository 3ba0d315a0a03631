"""Where cells run: processes of Ray, on this machine or on a cluster. They see no store, only what they are sent."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unbackdoor.bench import NOT_INSTALLED
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.worker import CellOutcome, Device, perform
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError, OutputError

if TYPE_CHECKING:
    from ray import ObjectRef

RETRIES = 3
"""Times that a cell is begun again because its machine or its process was lost."""

SETTINGS = {
    # Ray tells its makers nothing.
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without this Ray replaces the loopback address by one that others can reach.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # What it says of lost processes stands in the outcome of their cell, not among our answers.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # Ray lets its work wait for everything else on the machine; here it is what the machine is for.
    "RAY_worker_niceness": "0",
    # A cell that takes more memory than there is would be begun again for ever.
    "RAY_task_oom_retries": str(RETRIES),
    # Ray warns about what it will do in a later version unless this says that it is wanted now.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment variables of Ray, unless the user has set them."""

LOCAL_STORE_BYTES = 500_000_000
"""Memory in which Ray keeps files on the way between processes of one machine; what is more goes to the disk."""


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
        if gpus is not None and not (gpus == 0 or 0.001 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus))):
            raise InputError(f"--gpus-per-cell is 0, a part of a GPU of at least 0.001, or whole GPUs; found {gpus}")
        self.address, self.device = address or os.environ.get("RAY_ADDRESS"), device
        self.work = None if self.address else work
        self._cpus, self._gpus = cpus, gpus

    def __enter__(self) -> Engine:
        self._start()
        try:
            self._settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _settle(self) -> None:
        """Decide what a cell gets."""
        nodes = self._nodes()
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
            num_cpus=self._cpus, num_gpus=self._gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ours:
            with contextlib.suppress(Exception):
                self._ray.shutdown(wait_for_processes=True)

    def _start(self) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise InputError(NOT_INSTALLED) from error
        self._ray, self._ours = ray, not ray.is_initialized()
        if not self._ours:
            return
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if not self.address:
            # On the loopback address: whoever reaches a Ray can run code on it.
            common |= {"include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
            common |= {"_node_ip_address": "127.0.0.1"}
        try:
            ray.init(self.address or "local", **common)
        # Whatever it is: a busy port, no rights, a wrong address. Ray has no one exception for it.
        except Exception as error:
            raise InputError(f"Ray does not start: {reason_of(error)}; see --address") from error

    def _nodes(self) -> list[Mapping[str, float]]:
        """Return what each machine has; not those that are only there to lead."""
        with _there():
            nodes = self._ray.nodes()
        return [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU", 0)]

    def _fitting(self, nodes: Sequence[Mapping[str, float]]) -> int:
        """Return how many cells fit on the machines at one time."""
        return sum(cells_on(node, self._cpus or 1, self._gpus or 0.0) for node in nodes)

    def capacity(self) -> int:
        """Return how many cells run at one time on the machines that there are now; 1 while there are none."""
        return max(1, self._fitting(self._nodes()))

    def submit(self, cell: Cell, given: Mapping[str, bytes]) -> ObjectRef[CellOutcome]:
        """Let a cell run with the files of the one that it needs."""
        # Ray does not hide GPUs from a cell that asked for none.
        device = self.device if self._gpus else "cpu"
        with _there():
            return self._perform.remote(cell, given, self.work, device, self._cpus)

    def wait(self, running: Sequence[ObjectRef[CellOutcome]], seconds: float) -> list[ObjectRef[CellOutcome]]:
        """Return those that are done; wait for the first of them, or for this time if there is none."""
        if not running:
            time.sleep(seconds)
            return []
        with _there():
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


@contextlib.contextmanager
def _there() -> Iterator[None]:
    """Turn what Ray raises when its cluster has gone into one sentence."""
    from ray.exceptions import RayError

    try:
        yield
    except (ConnectionError, RuntimeError, RayError) as error:
        raise OutputError(f"the Ray cluster is gone: {reason_of(error)}; the same command goes on") from error


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


def cells_on(node: Mapping[str, float], cpus: int, gpus: float) -> int:
    """Return how many cells fit on one machine at one time.

    A cell gets whole GPUs or a part of one, so a GPU bears only as many parts as fit into it.
    """
    by_cpu = int(node.get("CPU", 0) // cpus)
    if not gpus:
        return by_cpu
    available = node.get("GPU", 0)
    # A hair more: 1 / 0.1 is less than 10 to a computer.
    by_gpu = available // gpus if gpus >= 1 else available * int(1 / gpus + 1e-9)
    return min(by_cpu, int(by_gpu))
