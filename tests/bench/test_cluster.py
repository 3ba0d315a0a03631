"""A grid on two machines loses nothing when one of them goes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench.noop import cells, processes_run, times_run
from tests.processes import children_of
from unbackdoor.bench.engine import Engine, default_cpus
from unbackdoor.bench.run import Bench, Summary
from unbackdoor.bench.store import Store
from unbackdoor.cluster import fitting
from unbackdoor.training import Silent


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus"),
    [
        ([{"CPU": 2.0}], 0.0, 2),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 0.0, 4),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], 1.0, 8),
        ([{"CPU": 16.0, "GPU": 1.0}], 0.25, 4),
        ([{"CPU": 1.0, "GPU": 8.0}], 1.0, 1),
    ],
)
def test_a_cell_gets_its_share_of_the_smallest_machine(nodes: list[dict[str, float]], gpus: float, cpus: int) -> None:
    assert default_cpus(nodes, gpus) == cpus
    assert any(fitting(node, cpus, gpus) for node in nodes)


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "fit"),
    [
        ({"CPU": 8.0}, 2, 0.0, 4),
        ({"CPU": 8.0}, 3, 0.0, 2),
        ({"CPU": 8.0}, 1, 1.0, 0),
        ({"CPU": 8.0, "GPU": 1.0}, 1, 0.25, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.3, 6),
        ({"CPU": 8.0, "GPU": 3.0}, 1, 2.0, 1),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.2, 10),
        ({"CPU": 64.0, "GPU": 2.0}, 1, 0.1, 20),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.05, 20),
    ],
)
def test_cells_that_fit_on_a_machine_are_counted(node: dict[str, float], cpus: int, gpus: float, fit: int) -> None:
    assert fitting(node, cpus, gpus) == fit


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two machines of one core each, both on this one."""
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()
    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.second = made.add_node(num_cpus=1, object_store_memory=100_000_000)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_nothing_is_lost_when_a_machine_is_lost(cluster: Any, store: Store, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    grid = cells(4, counted=counted, seconds=3.0)
    with Engine(address=cluster.address, cpus=1, gpus=0, device="cpu", work=tmp_path / "cells") as engine:
        assert engine.capacity() == 2
        bench = Bench(store, engine, tmp_path / "locks", keep_models=False, progress=Silent())
        killer = threading.Thread(target=lambda: lose(cluster, bench, counted))
        killer.start()
        summary = bench.run(grid)
        killer.join()
        assert engine.capacity() == 1
    assert (summary.done, summary.failed, summary.lost) == (len(grid), {}, [])
    assert {record.key for record in store.records() if not record.error} == {cell.key for cell in grid}
    assert set(times_run(counted)) == {cell.key for cell in grid}
    assert sum(times_run(counted).values()) > len(grid), "a cell was at work on the machine that was lost"


def lose(cluster: Any, bench: Bench, counted: Path) -> None:
    """Let the second machine go without a word, and all its processes, when it has just begun a cell."""
    leader = cluster.second.all_processes["raylet"][0].process.pid
    seen, deadline = 0, time.monotonic() + 120
    while time.monotonic() < deadline:
        begun = processes_run(counted)
        if getattr(bench, "summary", Summary()).done and children_of(leader).intersection(begun[seen:]):
            break
        seen = len(begun)
        time.sleep(0.05)
    # Its workers would finish their cell and answer, as Ray notices only later that the one who leads them is gone.
    for process in (leader, *children_of(leader)):
        os.kill(process, signal.SIGKILL)
    cluster.remove_node(cluster.second, allow_graceful=False)
