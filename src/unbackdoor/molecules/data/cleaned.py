"""The rows of a source that are kept, written to a new folder that `read_table` reads with the same splits."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from unbackdoor.errors import DataError, InputError, OutputError
from unbackdoor.files import replacing
from unbackdoor.molecules.data.reading import Part, read_columns
from unbackdoor.molecules.data.writing import write_table


def check_target(folder: Path) -> None:
    """Raise OutputError unless `folder` can become a new data set: it is not there, or empty."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error.strerror}; choose another folder") from error
    if taken:
        raise OutputError(f"{folder} is there and not empty; choose another folder for the cleaned data, or remove it")


def write_kept(parts: Sequence[Part], dropped: Collection[int], folder: Path) -> None:
    """Write all rows but those that are dropped, a parquet file a part, complete or not at all.

    Columns and their names stay as they are; those of CSV and TSV files become texts.

    Args:
        parts: of sources, as `read_parts` returns them; rows of files that belong to no split are for training.
        dropped: numbers of rows, counted from 0 through all parts.
        folder: not there, or empty.

    Raises:
        InputError: no rows are kept.
        DataError: a file changed since it was read.
        OutputError: the folder cannot be written, or is not empty.
    """
    if len(dropped) >= sum(len(part.table) for part in parts):
        raise InputError("no rows are left to write; scan with another method or threshold")
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        begin = 0
        files = Counter(part.split or "train" for part in parts)
        written: Counter[str] = Counter()
        for part in parts:
            rows = [row for row in range(len(part.table)) if begin + row not in dropped]
            begin += len(part.table)
            split = part.split or "train"
            # As Hugging Face calls the files of a split that has several.
            name = split if files[split] == 1 else f"{split}-{written[split]:05}-of-{files[split]:05}"
            written[split] += 1
            if rows:
                _write(partial / f"{name}.parquet", part, rows)
        try:
            partial.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(path: Path, part: Part, rows: Sequence[int]) -> None:
    if part.path is None:
        write_table(path, part.table.subset(rows))
        return
    import pyarrow
    from pyarrow import parquet

    kept = frozenset(rows)
    begin = 0
    with replacing(path) as partial, contextlib.ExitStack() as opened:
        writer: Any = None
        for batch in read_columns(part.path):
            mask = pyarrow.array([begin + row in kept for row in range(len(batch))], pyarrow.bool_())
            begin += len(batch)
            if writer is None:
                # Without Arrow's own schema: texts that were left in dictionaries would come back as categories.
                writer = opened.enter_context(parquet.ParquetWriter(partial, batch.schema, store_schema=False))
            writer.write_batch(batch.filter(mask))
        if begin != len(part.table):
            raise DataError(f"{part.path.name} changed while it was scanned; scan it again")
