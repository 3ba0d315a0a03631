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
import torch

from tests.bench.noop import cells, processes_run, times_run
from tests.processes import children_of
from unbackdoor.bench.engine import CELL_BYTES, Engine, default_cpus
from unbackdoor.bench.run import Bench, Summary
from unbackdoor.bench.store import Store
from unbackdoor.bench.worker import Device
from unbackdoor.cluster import fitting, gpus_each, this_machine
from unbackdoor.errors import InputError
from unbackdoor.training import Silent


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus"),
    [
        ([{"CPU": 1.0}], 0.0, 1),
        ([{"CPU": 2.0}], 0.0, 2),
        ([{"CPU": 3.0}], 0.0, 3),
        ([{"CPU": 5.0}], 0.0, 2),
        ([{"CPU": 64.0, "memory": 256e9}], 0.0, 2),
        ([{"CPU": 8.0, "memory": 10e9}], 0.0, 4),
        ([{"CPU": 64.0, "memory": 16e9}], 0.0, 12),
        ([{"CPU": 4.0, "memory": 1e9}], 0.0, 4),
        ([{"CPU": 16.0}, {"CPU": 4.0}], 0.0, 2),
        ([{"CPU": 16.0, "memory": 2e9}, {"CPU": 4.0}], 0.0, 4),
        ([{"CPU": 16.0, "GPU": 2.0}, {"CPU": 4.0}], 1.0, 8),
        ([{"CPU": 16.0, "GPU": 1.0}], 0.25, 4),
        ([{"CPU": 1.0, "GPU": 8.0}], 1.0, 1),
    ],
)
def test_a_cell_gets_two_cores_or_its_share_of_memory_and_gpus(
    nodes: list[dict[str, float]], gpus: float, cpus: int
) -> None:
    assert default_cpus(nodes, gpus) == cpus
    assert any(fitting(node, cpus, gpus) for node in nodes)
    if len(nodes) == 1 and not gpus:
        (node,) = nodes
        at_once = fitting(node, cpus, gpus)
        assert at_once == 1 or at_once * CELL_BYTES <= node.get("memory", 1e12)
        assert cpus == node["CPU"] or fitting(node, cpus + 1, gpus) < at_once, "none is left over"


def test_what_fits_is_foreseen_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("unbackdoor.cluster.this_machine", lambda: {"CPU": 8.0, "GPU": 2.0, "memory": 64e9})

    def foreseen(cpus: int | None, gpus: float | None, device: Device) -> int:
        return Engine(address=None, cpus=cpus, gpus=gpus, device=device, work=tmp_path).foreseen()

    assert foreseen(None, None, "cpu") == 4
    assert foreseen(8, None, "cpu") == 1
    assert foreseen(None, None, "auto") == 2, "one for each GPU"
    assert foreseen(None, 0.5, "cuda") == 4
    with pytest.raises(InputError, match="no machine has the 9 cores"):
        foreseen(9, None, "cpu")


def test_this_machine_has_cores_and_memory() -> None:
    here = this_machine()
    assert here["CPU"] >= 1
    if Path("/proc/meminfo").exists():
        assert here["memory"] > 1e8


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


@pytest.mark.parametrize(
    ("gpus", "wanted", "device", "each"),
    [
        ((0.0, 2.0), None, "auto", 1.0),
        ((0.0, 2.0), None, "cpu", 0.0),
        ((0.0, 2.0), 0.25, "cuda", 0.25),
        ((0.0, 2.0), 0.0, "auto", 0.0),
        ((0.0, 0.0), None, "auto", 0.0),
        ((0.0, 0.0), 0.5, "auto", 0.5),
    ],
)
def test_work_gets_the_gpus_asked_for_or_one_where_there_are_some(
    gpus: tuple[float, ...], wanted: float | None, device: str, each: float
) -> None:
    assert gpus_each([{"CPU": 4.0, "GPU": number} for number in gpus], wanted, device, "--these") == each


@pytest.mark.parametrize(("there", "wanted"), [(0.0, None), (2.0, 0.0)])
def test_a_gpu_that_nobody_would_get_is_refused(there: float, wanted: float | None) -> None:
    with pytest.raises(InputError, match="--device cuda needs --these above 0"):
        gpus_each([{"CPU": 4.0, "GPU": there}], wanted, "cuda", "--these")


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
        bench = Bench(store, engine, Silent())
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_two_cells_share_one_gpu(store: Store, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    counted = tmp_path / "counted"
    grid = cells(2, counted=counted, seconds=2.0)
    with Engine(address=None, cpus=1, gpus=0.5, device="cuda", work=tmp_path / "cells") as engine:
        assert engine.capacity() == 2 * torch.cuda.device_count()
        begin = time.monotonic()
        summary = Bench(store, engine, Silent()).run(grid)
    assert (summary.done, summary.failed) == (4, {})
    assert time.monotonic() - begin < 4 * 2.0 + 10
    assert len(set(processes_run(counted)[:2])) == 2, "two at a time, each in a process of its own"
    assert {record.machine["device"].split()[0] for record in store.records()} == {"cuda"}
