"""Data in several files, and workers that are this very process."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pyarrow import parquet
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.data.shards import Shard
from unbackdoor.errors import UnbackdoorError
from unbackdoor.sift.sharded import Workers


class Here(Workers):
    """Does one shard after the other; work and answers are sent as Ray would send them.

    Args:
        stop_after: shards after which it fails, as if it had been killed.
    """

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__(address=None, gpus=0.0, runtime=_one_thread())
        self.stop_after = stop_after
        self.done: list[str] = []

    def each(
        self, make: Callable[[], Callable[[Shard], dict[str, Any]]], shards: Sequence[Shard], *, gpus: bool
    ) -> Iterator[tuple[Shard, dict[str, Any]]]:
        work = pickle.loads(pickle.dumps(make))()
        for shard in shards:
            if len(self.done) == self.stop_after:
                raise KeyboardInterrupt
            try:
                answer = work(shard)
            except UnbackdoorError as error:
                answer = {"error": str(error)}
            self.done.append(shard.name)
            yield shard, json.loads(json.dumps(answer))


def _one_thread() -> Any:
    from tests.planted import runtime

    return runtime()


def write_files(folder: Path, rows: ImageSet, sizes: Sequence[int], **columns: Tensor) -> Path:
    """Write rows to files of these sizes, named in their order."""
    start = 0
    for number, size in enumerate(sizes):
        part = torch.arange(start, start + max(size, 1))
        path = folder / f"train-{number:05}-of-{len(sizes):05}.parquet"
        write_parquet(path, rows.subset(part), {name: values[part] for name, values in columns.items()})
        if not size:
            parquet.write_table(parquet.read_table(path)[:0], path)
        start += size
    assert start == len(rows)
    return folder
