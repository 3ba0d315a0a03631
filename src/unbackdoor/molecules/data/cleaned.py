"""The rows of a source that are kept, written to a new folder that `read_table` reads with the same splits."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

from unbackdoor.errors import InputError, OutputError
from unbackdoor.molecules.data.table import Table, joined
from unbackdoor.molecules.data.writing import write_table


def check_target(folder: Path) -> None:
    """Raise OutputError unless `folder` can become a new data set: it is not there, or empty."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error.strerror}; choose another folder") from error
    if taken:
        raise OutputError(f"{folder} is there and not empty; choose another folder for the cleaned data, or remove it")


def write_kept(parts: Sequence[tuple[str | None, Table]], dropped: Collection[int], folder: Path) -> None:
    """Write all rows but those that are dropped, a parquet file a split, complete or not at all.

    Args:
        parts: split and rows of each file of a source, as `read_parts` returns them; rows of files that belong to no
            split are for training.
        dropped: numbers of rows, counted from 0 through all parts.
        folder: not there, or empty.

    Raises:
        InputError: no rows are kept.
        OutputError: the folder cannot be written, or is not empty.
    """
    kept: dict[str, list[Table]] = {}
    begin = 0
    for split, table in parts:
        rows = [row for row in range(len(table)) if begin + row not in dropped]
        kept.setdefault(split or "train", []).append(table.subset(rows))
        begin += len(table)
    if not any(len(table) for tables in kept.values() for table in tables):
        raise InputError("no rows are left to write; scan with another method or threshold")
    check_target(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        for split, tables in kept.items():
            write_table(partial / f"{split}.parquet", joined(tables))
        try:
            partial.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
