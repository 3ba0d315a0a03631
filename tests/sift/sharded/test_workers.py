"""Through Ray Data, on two machines of which one is lost; `tests/commands` sifts through it on one."""

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

from tests.planted import pictures, planted, runtime
from tests.processes import children_of
from tests.sift.sharded.here import write_files
from tests.sift.sharded.slowly import Slowly, at_work
from tests.sift.sharded.test_sifting import at_once, check_same, table_of
from unbackdoor.data.shards import Shards
from unbackdoor.errors import InputError
from unbackdoor.sift.sharded import Workers, sift_shards


@pytest.mark.parametrize("gpus", [-1.0, 0.0001, 1.5, float("nan")])
def test_parts_of_gpus_that_there_are_not_are_refused(gpus: float) -> None:
    with pytest.raises(InputError, match="--gpus-per-worker is 0, a part of a GPU"):
        Workers(address=None, gpus=gpus, runtime=runtime())


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
def test_nothing_is_lost_when_a_machine_is_lost(cluster: Any, tmp_path: Path) -> None:
    rows, noted, out = pictures(120, 3), tmp_path / "noted", tmp_path / "out"
    noted.mkdir()
    folder = write_files(tmp_path / "data", rows, [20] * 6)
    method = Slowly(seconds=3.0, noted=noted, poisoned_share=0.1)
    model = planted(0).suspect
    with Workers(address=cluster.address, gpus=0, runtime=runtime()) as workers:
        assert workers.count == 2
        lost: list[int] = []
        killer = threading.Thread(target=lambda: lost.extend(lose(cluster, noted, out)))
        killer.start()
        found = sift_shards(Shards.of(folder), method, runtime(), workers, out, model=model)
        killer.join()
    begun = at_work(noted)
    assert set(lost) & set(begun), "a file was being scored on the machine that was lost"
    assert len(begun) > 6, "that file was begun again"
    assert found.rows == table_of(out).num_rows == 120
    check_same(out, found, at_once(rows, Slowly(seconds=0, noted=noted, poisoned_share=0.1), model))
    assert torch.equal(torch.tensor(table_of(out)["label"].to_pylist()), rows.labels)


def lose(cluster: Any, noted: Path, out: Path) -> list[int]:
    """Let the second machine go without a word, once a file is done and it has just begun one; return its processes."""
    leader = cluster.second.all_processes["raylet"][0].process.pid
    seen: set[Path] = set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        new = set(noted.glob("[!.]*")) - seen
        if list(out.glob("*.parquet")) and children_of(leader) & {int(path.read_text()) for path in new}:
            break
        seen |= new
        time.sleep(0.05)
    lost = [leader, *children_of(leader)]
    # Its workers would finish their file, as Ray notices only later that the one who leads them is gone.
    for process in lost:
        os.kill(process, signal.SIGKILL)
    cluster.remove_node(cluster.second, allow_graceful=False)
    return lost
