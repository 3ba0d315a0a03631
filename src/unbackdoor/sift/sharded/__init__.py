"""Sifting of data that no machine holds whole: parquet files that Ray Data hands out, file by file."""

from unbackdoor.sift.sharded.marking import Marks, Place, Thresholds, Top
from unbackdoor.sift.sharded.sifting import ShardedSuspicion, sift_shards
from unbackdoor.sift.sharded.workers import Workers

__all__ = ["Marks", "Place", "ShardedSuspicion", "Thresholds", "Top", "Workers", "sift_shards"]
