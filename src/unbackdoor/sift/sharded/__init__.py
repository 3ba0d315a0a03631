"""Sifting of data that no machine holds whole: parquet files that Ray Data hands out, file by file."""

from unbackdoor.sift.sharded.sifting import ShardedSuspicion, sift_shards
from unbackdoor.sift.sharded.workers import Workers

__all__ = ["ShardedSuspicion", "Workers", "sift_shards"]
