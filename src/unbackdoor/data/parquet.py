"""Parquet files in Hugging Face's layout."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from unbackdoor.data.cache import content_hash
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_rows, check_size
from unbackdoor.data.splits import source_name, split_named
from unbackdoor.data.tables import BATCH, check_kept_classes, quiet, read_in, read_rows, reported
from unbackdoor.errors import DataError
from unbackdoor.files import replacing
from unbackdoor.limits import MAX_CLASSES

BUFFER = 2**20
"""Bytes of a column that are read at once, however large its row group is."""
FEW = 16
"""Rows whose images are unpacked at once: a file may hold far more than it declares."""
MOST_AT_ONCE = 2**26
"""Bytes of texts that are unpacked at once, if more than one row has them."""


class ParquetFiles:
    """Reader of a folder of parquet files in Hugging Face's layout, or of one such file.

    A file belongs to the split that its name, or a folder's name on the way to it, begins with. One file by
    itself, or files that name no split, are one undivided set.

    Args:
        path: the folder or the file.
        source: what to call it in messages.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.name = source_name(path)
        self.source = source
        self._root = path if path.is_dir() else path.parent
        found = parquet_files(path) if path.is_dir() else [path]
        self._files: dict[str | None, list[Path]] = {}
        for file in found:
            words = file.relative_to(self._root).parts if path.is_dir() else ()
            split = next((split for split in map(split_named, words) if split is not None), None)
            self._files.setdefault(split, []).append(file)
        # Files beside the splits that name none of them are not part of the set.
        self.splits = [split for split in self._files if split is not None]
        if self.splits:
            self._files.pop(None, None)

    def content_hash(self) -> str:
        """Return the hash of the files of all splits."""
        listed = (file for files in self._files.values() for file in files)
        return content_hash({file.relative_to(self._root).as_posix(): file for file in listed})

    def read(self, split: str | None) -> ImageSet:
        """Return the images of `split`, file by file."""
        rows = self._rows(split)
        with quiet(offline=True):
            return read_rows(self._parts(), split, rows, self.source)

    def files(self, split: str | None) -> dict[str, Path]:
        """Return the files of `split` by the names that they have in the folder, in the order of `read`."""
        return {file.relative_to(self._root).as_posix(): file for file in self._files[split]}

    def others(self, split: str | None) -> dict[str, Path]:
        """Return the files of all other splits by their names."""
        return {name: file for other in self._files if other != split for name, file in self.files(other).items()}

    def copy_kept(self, split: str | None, kept: Bool[Tensor, "n"], folder: Path) -> None:
        """Write the kept rows with all their columns to files of the same names (see `Reader.copy_kept`)."""
        check_rows(self._rows(split), kept, self.source)
        with quiet(offline=True):
            check_kept_classes(self._parts(), split, kept, self.source)
        start = 0
        for name, file in self.files(split).items():
            start += copy_rows(file, folder / name, kept[start:], self.source)
        self.copy_others(split, folder)

    def copy_others(self, split: str | None, folder: Path) -> None:
        """Write the splits other than this one to files of the same names.

        Raises:
            DataError: a file cannot be read.
            OutputError: a file cannot be written.
        """
        for name, file in self.others(split).items():
            with reported(self.source), replacing(folder / name) as partial:
                shutil.copyfile(file, partial)

    def _parts(self) -> dict[str | None, _Part]:
        """Return the files of all splits."""
        parts: dict[str | None, _Part] = {}
        for name, files in self._files.items():
            with reported(self.source):
                parts[name] = _Part(files)
        return parts

    def _rows(self, split: str | None) -> int:
        """Return the number of rows that a split's files declare, after bounding what all files declare."""
        from pyarrow import parquet

        rows = size = 0
        for name, files in self._files.items():
            for file in files:
                with reported(self.source):
                    metadata = parquet.read_metadata(file)
                    check_row_counts(metadata)
                    sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
                    described = json.loads((metadata.metadata or {}).get(b"huggingface", b"null"))
                    check_declared_classes(described, self.source)
                size += sum(sizes)
                rows += metadata.num_rows if name == split else 0
        check_size(size, self.source)
        if rows == 0:
            raise DataError(f"{self.source} holds no images; name a data set with at least one image")
        return rows


class _Part:
    """The files of one split.

    `datasets` only tells what the columns mean. It would unpack whole row groups, and repeat a large value that a
    file of 20 kB stores once and refers to from a million rows; so the rows are read here, in batches, and with the
    values left in the dictionary that the file has of them.
    """

    def __init__(self, files: list[Path]) -> None:
        from datasets import load_dataset

        self._files = files
        # File names are taken literally: a "[" in one is no pattern.
        literal = [glob.escape(str(file.absolute())) for file in files]
        described = load_dataset("parquet", data_files={"train": literal}, streaming=True, split="train")
        self.features: Mapping[str, Any] | None = described.features

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """See `Part`."""
        for path in self._files:
            for _, batch in batches_of(path, columns):
                yield batch


def batches_of(
    path: Path, columns: list[str] | None, rows: Int[np.ndarray, "m"] | None = None, at_once: int = FEW
) -> Iterator[tuple[int, Any]]:
    """Yield Arrow tables of a few rows with these columns, each with the number of its first row.

    Args:
        path: of one parquet file.
        columns: wanted ones; None: all.
        rows: wanted ones; row groups without any of them are not read. None: all.
        at_once: rows of a table at most.
    """
    from pyarrow import parquet

    metadata = parquet.read_metadata(path)
    leaves = [metadata.schema.column(i) for i in range(len(metadata.schema))]
    texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    start = 0
    with parquet.ParquetFile(path, read_dictionary=texts, buffer_size=BUFFER) as file:
        for group in range(file.num_row_groups):
            end = start + metadata.row_group(group).num_rows
            if rows is None or bool(((rows >= start) & (rows < end)).any()):
                # Arrow does not put the dictionaries of two groups into one batch.
                for batch in file.iter_batches(at_once, row_groups=[group], columns=columns):
                    yield start, batch
                    start += len(batch)
            start = end


def copy_rows(file: Path, target: Path, kept: Bool[Tensor, "n"], source: str) -> int:
    """Write the kept rows of one file, with all its columns, to another, and return how many rows the file has.

    Args:
        file: the one.
        target: the other.
        kept: of each row; those beyond the file's are not looked at.
        source: what to call the data set in messages.

    Raises:
        DataError: the file cannot be read.
        OutputError: the target cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    with reported(source):
        schema = parquet.read_schema(file)
    count = size = 0
    declared = file.stat().st_size
    # A full disk is not the source's fault.
    batches = read_in(batches_of(file, None, at_once=BATCH), source)
    with replacing(target) as partial, parquet.ParquetWriter(partial, schema) as written:
        for _, batch in batches:
            mask = pyarrow.array(kept[count : count + len(batch)].tolist(), pyarrow.bool_())
            count += len(batch)
            for part, unpacked in _in_parts(batch.filter(mask)):
                size += unpacked
                # Files of any size are gone through, but not such as grow beyond what they are.
                check_size(size - declared, source)
                written.write_batch(part.cast(schema))
    return count


def _in_parts(batch: Any) -> Iterator[tuple[Any, int]]:
    """Yield an Arrow table in parts that take at most `MOST_AT_ONCE` unpacked, or are one row, with their sizes."""
    size = unpacked_size(batch)
    if len(batch) < 2 or size <= MOST_AT_ONCE:
        if len(batch):
            yield batch, size
        return
    middle = len(batch) // 2
    yield from _in_parts(batch[:middle])
    yield from _in_parts(batch[middle:])


def unpacked_size(array: Any) -> int:
    """Return the bytes that the texts of an Arrow table or array take when values that its dictionaries have once are
    repeated.
    """
    import pyarrow
    import pyarrow.compute

    if isinstance(array, pyarrow.RecordBatch):
        return sum(map(unpacked_size, array.columns))
    if isinstance(array, pyarrow.DictionaryArray):
        lengths = pyarrow.compute.binary_length(array.dictionary).take(array.indices)
        return int(pyarrow.compute.sum(lengths.cast(pyarrow.int64())).as_py() or 0)
    if isinstance(array, pyarrow.StructArray):
        return sum(map(unpacked_size, array.flatten()))
    if isinstance(array, (pyarrow.ListArray, pyarrow.LargeListArray, pyarrow.FixedSizeListArray, pyarrow.MapArray)):
        return unpacked_size(array.flatten())
    return int(array.nbytes)


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files at any depth below `folder`, hidden ones excepted, by path."""
    return sorted(
        file
        for file in folder.rglob("*.parquet")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def check_row_counts(metadata: Any) -> None:
    """Raise ValueError unless the numbers of rows that a file declares agree."""
    counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(counts, default=0) < 0 or sum(counts) != metadata.num_rows:
        raise ValueError("its row groups have other numbers of rows than it declares")


def check_declared_classes(described: Any, source: str) -> None:
    """Refuse a description of columns that would make `datasets` think up the names of 10^12 classes."""
    if isinstance(described, dict):
        classes = described.get("num_classes")
        if isinstance(classes, int) and classes > MAX_CLASSES:
            raise DataError(
                f"{source} declares {classes} classes, and at most {MAX_CLASSES:,} are accepted; correct its metadata"
            )
        described = list(described.values())
    if isinstance(described, list):
        for value in described:
            check_declared_classes(value, source)
