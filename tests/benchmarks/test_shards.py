"""The program that measures sifting file by file: the files that it makes, and what it writes of costs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unbackdoor.data import ImageSet
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.data.shards import Shards


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import shards

        yield shards


def test_files_hold_all_rows_in_order_and_come_again_and_again(
    program: ModuleType, tmp_path: Path, tiny_images: ImageSet
) -> None:
    write_parquet(tmp_path / "source" / "train-0.parquet", tiny_images, {})
    (tmp_path / "work").mkdir()
    files = program.make_files(tmp_path / "source", tmp_path / "work", 50)
    assert len(files) == 2, "twenty rows are left over"
    program.repeat(files, tmp_path / "data", 5)
    shards = Shards.of(tmp_path / "data")
    assert [shard.rows for shard in shards.shards] == [50] * 5
    images = torch.cat([piece.images for shard in shards.shards for piece in shards.pieces(shard, 3)])
    assert torch.equal(images, tiny_images.images[torch.arange(250) % 100])
    assert shards.class_names == tiny_images.class_names


def row(rows: int, seconds: float, worker_mb: float) -> dict[str, Any]:
    memory = {"driver_mb": 400.0, "worker_mb": worker_mb, "all_mb": 900.0}
    machine = {"device": "cpu (x)", "threads": "1", "torch": "2"}
    counts = {"method": "FCT", "rows": rows, "files": rows // 100, "workers": 2}
    return {**counts, "seconds": seconds, "cpu_seconds": 2 * seconds, **memory, **machine}


def test_what_grows_is_said(program: ModuleType) -> None:
    table = program.written([row(8000, 90.0, 505.0), row(1000, 20.0, 500.0), row(2000, 30.0, 510.0)])
    assert "| FCT | 1,000 | 10 | 2 | 20.0 | 40.0 | 50 |  | 400 | 500 | 900 |" in table
    assert "| FCT | 8,000 | 80 | 2 | 90.0 | 180.0 | 89 | 100 | 400 | 505 | 900 |" in table
    assert "memory grew to 1.01 times at most (flat, up to 1.1: yes)" in table
    assert "took 1.00 times as long at the end as at first (linear, up to 1.15: yes)" in table
    table = program.written([row(1000, 20.0, 500.0), row(2000, 30.0, 510.0), row(8000, 190.0, 800.0)])
    assert "memory grew to 1.60 times at most (flat, up to 1.1: no)" in table
    assert "took 2.67 times as long at the end as at first (linear, up to 1.15: no)" in table


def test_a_process_sees_what_it_takes(program: ModuleType) -> None:
    with program.Watch() as watch:
        program.time.sleep(1.2)
        assert sum(range(2_000_000)) > 0
    assert watch.all_mb > 50
    assert watch.driver_mb >= 50
    assert watch.worker_mb == 0
    assert watch.cpu_seconds >= 0
