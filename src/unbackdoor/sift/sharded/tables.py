"""The table of one shard: a parquet file that is there whole or not at all, and says of what it was made.

A table is written when its shard is scored, and once more with two further columns when it is known where the
thresholds lie. `row` counts from 0 within the shard, so `shard` and `row` together name a row of the data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from unbackdoor.files import replacing

ROWS = 2**16
"""That are held, written and read together: a row takes some bytes here, and not those of an image."""

KEY = b"unbackdoor"
"""Of the note in a table's metadata."""

TEXTS = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())

SCORED = pyarrow.schema(
    [
        ("shard", TEXTS),
        ("row", pyarrow.int64()),
        ("label", pyarrow.int64()),
        ("class_name", TEXTS),
        ("score", pyarrow.float32()),
    ]
)
"""Columns of a table with scores."""

MARKED = SCORED.append(pyarrow.field("suspicion", TEXTS)).append(pyarrow.field("reason", TEXTS))
"""Columns of a table that says what rows are held to be, too."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Of what a table was made.

    Attributes:
        fingerprint: of all that decides the scores of a shard but the shard itself.
        sha256: of the shard.
        rows: how many there are.
        counts: of rows, by name (see `RowSifter.measure`).
    """

    fingerprint: str
    sha256: str
    rows: int
    counts: dict[str, int] = field(default_factory=dict)


def note_of(path: Path) -> Note | None:
    """Return the note of a table, or None if there is no such table."""
    try:
        return Note(**json.loads((parquet.read_metadata(path).metadata or {})[KEY]))
    # A file of somebody else's, or one that a disk has damaged: it is written anew.
    except (OSError, KeyError, ValueError, TypeError):
        return None


class TableWriter:
    """Writes a table in parts of at least `ROWS` rows, but for the last.

    Args:
        file: that takes them.
        schema: their columns.
    """

    def __init__(self, file: parquet.ParquetWriter, schema: pyarrow.Schema) -> None:
        self._file, self._schema = file, schema
        self._parts: list[pyarrow.Table] = []
        self._held = 0

    def add(self, **columns: Any) -> None:
        """Add rows: one list or array a column."""
        arrays = [pyarrow.array(columns[one.name], _plain(one.type)).cast(one.type) for one in self._schema]
        self._parts.append(pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._held += len(arrays[0])
        if self._held >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held."""
        if self._parts:
            self._file.write_table(pyarrow.concat_tables(self._parts).unify_dictionaries().combine_chunks())
        self._parts, self._held = [], 0

    def note(self, note: Note) -> None:
        """Say of what the table was made."""
        self._file.add_key_value_metadata({KEY: json.dumps(asdict(note)).encode()})


@contextmanager
def writing(path: Path, schema: pyarrow.Schema) -> Iterator[TableWriter]:
    """Yield the writer of a table, which is there when the block has ended, and not before.

    Raises:
        OutputError: it cannot be written.
    """
    with replacing(path) as partial, parquet.ParquetWriter(partial, schema) as file:
        writer = TableWriter(file, schema)
        yield writer
        writer.flush()


def reading(path: Path, *columns: str) -> Iterator[pyarrow.RecordBatch]:
    """Yield some columns of a table in parts of at most `ROWS` rows."""
    with parquet.ParquetFile(path, buffer_size=2**20) as file:
        yield from file.iter_batches(ROWS, columns=list(columns))


def column(batch: pyarrow.RecordBatch, name: str) -> np.ndarray:
    """Return a column of numbers."""
    found: np.ndarray = batch.column(name).to_numpy(zero_copy_only=False)
    return found


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind
