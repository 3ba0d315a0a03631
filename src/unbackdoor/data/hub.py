"""Data sets on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Bool
from torch import Tensor

from unbackdoor.data.cache import content_hash
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_rows, reason_of
from unbackdoor.data.splits import split_named
from unbackdoor.data.tables import DatasetPart, check_kept_classes, quiet, read_in, read_rows
from unbackdoor.errors import DataError
from unbackdoor.files import replacing

if TYPE_CHECKING:
    from datasets import Dataset


UNDIVIDED = "images"
"""Beginning of the name of a file that names no split, so that what is written of an undivided set stays one."""


class HubSet:
    """Reader of a data set on the Hugging Face hub; needs the network unless `datasets` has it already.

    Args:
        source: `name` or `owner/name`.

    Raises:
        DataError: there is no such data set, or the hub cannot be reached.
    """

    def __init__(self, source: str) -> None:
        from datasets import load_dataset

        self.name = source.rsplit("/", maxsplit=1)[-1]
        self.source = source
        try:
            with quiet(offline=False):
                loaded = load_dataset(source)
        except Exception as error:  # of the network, the hub, and the files that it holds
            raise DataError(
                f"{source} is no file or folder here, and it cannot be had from the Hugging Face hub:"
                f" {reason_of(error)}; check the spelling, or the connection and your access to it"
            ) from error
        self._parts = _hub_parts(loaded, source)
        self.splits = [split for split in self._parts if split is not None]

    def content_hash(self) -> str | None:
        """Return the hash of the Arrow files that `datasets` keeps of this revision, if it keeps any."""
        kept = [[Path(file["filename"]) for file in part.cache_files] for part in self._parts.values()]
        return content_hash({path.name: path for paths in kept for path in paths}) if all(kept) else None

    def read(self, split: str | None) -> ImageSet:
        """Return the images of `split`."""
        with quiet(offline=False):
            return read_rows(self._tables(), split, self._parts[split].num_rows, self.source)

    def _tables(self) -> dict[str | None, DatasetPart]:
        """Return all splits as `read_rows` takes them."""
        return {name: DatasetPart(part) for name, part in self._parts.items()}

    def copy_kept(self, split: str | None, kept: Bool[Tensor, "n"], folder: Path) -> None:
        """Write a parquet file of each split, with all its columns (see `Reader.copy_kept`)."""
        check_rows(self._parts[split].num_rows, kept, self.source)
        with quiet(offline=False):
            check_kept_classes(self._tables(), split, kept, self.source)
            for name, part in self._parts.items():
                file = folder / "data" / f"{name or UNDIVIDED}-00000-of-00001.parquet"
                _write(part, kept if name == split else None, file, self.source)


def _write(part: Dataset, kept: Bool[Tensor, "n"] | None, path: Path, source: str) -> None:
    """Write the kept rows of a split, or all of them, with all its columns; images stay encoded as they are."""
    import pyarrow
    from pyarrow import parquet

    schema, start = part.features.arrow_schema, 0
    # A full disk is not the source's fault.
    tables = read_in(DatasetPart(part).batches(list(part.features)), source)
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as written:
        for table in tables:
            chosen = [True] * len(table) if kept is None else kept[start : start + len(table)].tolist()
            written.write_table(table.filter(pyarrow.array(chosen, pyarrow.bool_())).cast(schema))
            start += len(table)


def _hub_parts(loaded: Mapping[Any, Dataset], source: str) -> dict[str | None, Dataset]:
    """Return what was loaded by our names of splits; under None if it is one undivided set."""
    if len(loaded) == 1:
        # `datasets` calls a set without splits "train", and a lone split of any name has nothing beside it.
        return {None: next(iter(loaded.values()))}
    parts: dict[str | None, Dataset] = {}
    for name in sorted(map(str, loaded), key=len):  # "train" before "train_extra"
        if (split := split_named(name)) is not None:
            parts.setdefault(split, loaded[name])
    if not parts:
        names = ", ".join(map(str, loaded))
        raise DataError(f"{source} has the splits {names}, and none of them is for training or testing")
    return parts
