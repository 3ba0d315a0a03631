"""Processes of Ray that each do one shard at a time, through Ray Data: on this machine, or on a cluster."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from unbackdoor import cluster
from unbackdoor.data.limits import reason_of
from unbackdoor.data.shards import Shard
from unbackdoor.errors import InputError, OutputError, UnbackdoorError
from unbackdoor.training import Runtime, Silent

NOT_INSTALLED = "sifting file by file needs Ray; install it with pip install 'unbackdoor[bench]'"

GPUS = "--gpus-per-worker"

Work = Callable[[Shard], dict[str, Any]]
"""Does one shard and returns JSON values."""


class Workers:
    """A running Ray, while its context lasts, and what each of its processes gets.

    Args:
        address: of a cluster; None: `$RAY_ADDRESS`, or a Ray of our own on this machine.
        gpus: GPUs that a process gets, such as 0.25; None: 1 where there are GPUs.
        runtime: its threads are the cores that a process gets, 1 if they are not said; its device is that of every
            process.
    """

    def __init__(self, *, address: str | None, gpus: float | None, runtime: Runtime) -> None:
        cluster.check_gpus(gpus, GPUS)
        self.address, self.device = address or os.environ.get("RAY_ADDRESS"), runtime.device
        self.cpus, self._gpus = runtime.threads or 1, gpus

    def __enter__(self) -> Workers:
        self._ray, self._ours = cluster.start(self.address, NOT_INSTALLED)
        try:
            self._settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _settle(self) -> None:
        """Decide what a process gets, and how many there are."""
        machines = cluster.machines(self._ray)
        self._gpus = cluster.gpus_each(machines, self._gpus, self.device, GPUS)
        self.count = sum(cluster.fitting(one, self.cpus, self._gpus) for one in machines)
        if not self.count:
            raise InputError(
                f"no machine has the {self.cpus} cores and {self._gpus:g} GPUs that a worker is to get; ask for less"
            )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._ours:
            cluster.stop(self._ray)

    @property
    def place(self) -> str:
        """The kind of device that a process has."""
        return "cuda" if self._gpus else "cpu"

    def runtime(self, runtime: Runtime) -> Runtime:
        """Return the runtime that a process has: its share of the machine, and nobody who sees its progress."""
        # Ray does not hide GPUs from a process that asked for none.
        device = runtime.device if self._gpus else "cpu"
        return replace(runtime, device=device, threads=self.cpus, progress=Silent())

    def each(
        self, make: Callable[[], Work], shards: Sequence[Shard], *, gpus: bool
    ) -> Iterator[tuple[Shard, dict[str, Any]]]:
        """Do every shard somewhere, and yield it with what came of it, in the order in which they are done.

        A shard whose process or machine is lost is begun again, as often as that happens: the work counts it itself.

        Args:
            make: called once in each process, returns what does a shard. What it raises as an `UnbackdoorError` is what
                came of that shard: `error`, the sentence.
            shards: to do.
            gpus: whether the work is for GPUs, where there are any.

        Raises:
            OutputError: the cluster is gone.
        """
        from ray.data import ActorPoolStrategy, from_items
        from ray.exceptions import RayError, RayTaskError

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        numbered = from_items([{"number": number} for number in range(len(shards))], override_num_blocks=len(shards))
        numbered.context.enable_progress_bars = numbered.context.print_on_execution_start = False
        done = numbered.map_batches(
            _Worker,
            fn_constructor_args=(make, shards),
            batch_size=1,
            # One after the other: none waits behind another while a third process has nothing to do.
            compute=ActorPoolStrategy(size=min(self.count, len(shards)), max_tasks_in_flight_per_actor=1),
            num_cpus=self.cpus,
            num_gpus=self._gpus if gpus and self._gpus else None,
        )
        try:
            for row in done.iter_rows():
                yield shards[row["number"]], json.loads(row["answer"])
        except RayTaskError:
            # A defect: what it says of where is needed.
            raise
        except (ConnectionError, RayError) as error:
            raise OutputError(f"Ray lost its work: {reason_of(error)}; the same command goes on") from error


class _Worker:
    """What Ray Data makes in each process; it hands over the number of a shard."""

    def __init__(self, make: Callable[[], Work], shards: Sequence[Shard]) -> None:
        self.work, self.shards = make(), shards

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        number = int(batch["number"][0])
        try:
            answer = self.work(self.shards[number])
        except UnbackdoorError as error:
            answer = {"error": str(error)}
        return {"number": batch["number"], "answer": np.array([json.dumps(answer)])}
