"""Reading tables of SMILES and text: parquet, CSV and TSV, one file or a folder of them; everything may be hostile.

Nothing in a table is run or followed; numbers of rows and sizes are bounded before anything is unpacked.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from unbackdoor.data.limits import check_size, reason_of
from unbackdoor.data.splits import choose_split, source_name, split_named
from unbackdoor.data.tables import reported
from unbackdoor.errors import DataError
from unbackdoor.files import read_bytes
from unbackdoor.molecules.data.embedded import TEMPLATES, template_table
from unbackdoor.molecules.data.table import Table, joined
from unbackdoor.text import clean_text

SMILES_COLUMNS = ("smiles", "canonical_smiles", "isomeric_smiles")
TEXT_COLUMNS = ("description", "text", "caption")
POISONED_COLUMN = "poisoned"
"""Of files that `unbackdoor molecules poison` wrote."""

ENDINGS = (".parquet", ".csv", ".tsv")

MAX_ROWS = 5_000_000
MAX_CSV_BYTES = 2**30
BATCH = 1000
"""Rows that are unpacked at a time: a file may hold far more than it declares."""
NESTED_BATCH = 100
"""The same where texts cannot be left in their dictionaries."""

Split = Literal["all", "test"]
Wanted = Literal["pairs", "molecules", "texts"]
"""What is read: both columns; SMILES alone; or texts, with SMILES where there is a column of them."""

TRUE = ("1", "true")
"""What says that a row is poisoned, in small letters."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of a source.

    Attributes:
        split: that it belongs to; None if it belongs to none.
        table: its rows as they are.
        path: of the file; None for pairs that are made here.
    """

    split: str | None
    table: Table
    path: Path | None = None


class _TextlessError(DataError):
    """A table has no column of text."""


def read_table(source: str, split: Split, *, wanted: Wanted = "pairs") -> Table:
    """Return the rows of a source as they are.

    Args:
        source: "templates" (made here), a parquet, CSV or TSV file, or a folder of such files. The names of files in
            a folder, or of folders on the way to them, say their split (`train.parquet`, `test-00000.parquet`). Where
            texts are wanted, tables of a folder that have no column of them are left out, and their rows counted.
        split: "all", or "test": the test split, or the validation split where there is no other. A source without
            splits is returned whole.
        wanted: columns; what is not read is empty.

    Raises:
        DataError: it cannot be read, or has no column of SMILES or of text.
    """
    return joined([part.table for part in read_parts(source, split, wanted=wanted)])


def read_parts(source: str, split: Split = "all", *, wanted: Wanted = "pairs") -> list[Part]:
    """Return each file of a source with its rows as they are.

    Args:
        source: see `read_table`.
        split: see `read_table`.
        wanted: see `read_table`.

    Raises:
        DataError: see `read_table`.
    """
    if source == TEMPLATES:
        return [Part(split=None, table=template_table())]
    path = Path(source)
    shown = clean_text(source)
    files = _files(path, shown)
    if split == "test":
        splits = {found for _, found in files if found is not None}
        chosen = choose_split("test", splits, shown) if splits else None
        files = [(file, found) for file, found in files if found == chosen]
    name = source_name(path)
    parts: list[Part] = []
    textless: list[_TextlessError] = []
    left_out = 0
    for file, found in files:
        try:
            parts.append(Part(split=found, table=_read_file(file, name, shown, wanted), path=file))
        except _TextlessError as error:
            # Molecules alone, as they stand beside the pairs of a published set.
            textless.append(error)
            left_out += len(_read_file(file, name, shown, "molecules"))
    if not parts:
        raise textless[0]
    first = parts[0]
    return [replace(first, table=replace(first.table, textless=left_out)), *parts[1:]]


def read_columns(path: Path) -> Iterator[Any]:
    """Yield all columns of a file that `read_parts` read, with their names, as Arrow batches of its rows.

    Args:
        path: of a parquet file, whose columns keep their types, or of a CSV or TSV file, whose cells are texts.

    Raises:
        DataError: it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    shown = clean_text(path.name)
    with reported(shown):
        if path.suffix.lower() == ".parquet":
            leaves = _leaves(_metadata(path, shown))
            # Texts inside of lists cannot be left in their dictionaries, see `_read_parquet`.
            rows = BATCH if not any("." in leaf for leaf in leaves) else NESTED_BATCH
            with parquet.ParquetFile(path, read_dictionary=[leaf for leaf in leaves if "." not in leaf]) as file:
                yield from file.iter_batches(rows)
        else:
            header, lines = _lines(path, shown)
            cells = list(_cells(lines, range(len(header)), len(header), shown))
            columns = [pyarrow.array([row[place] for row in cells], pyarrow.string()) for place in range(len(header))]
            yield from pyarrow.Table.from_arrays(columns, names=header).to_batches(BATCH)


def tested_split(source: str) -> str | None:
    """Return the split of a source that `read_table` gives as "test", or None if it has no such split."""
    if source == TEMPLATES:
        return None
    splits = {found for _, found in _files(Path(source), clean_text(source))}
    return next((split for split in ("test", "validation") if split in splits), None)


def _files(path: Path, shown: str) -> list[tuple[Path, str | None]]:
    """Return the files of a source, each with its split; those beside the splits that name none are no part of it."""
    if path.is_file():
        return [(path, None)]
    if not path.is_dir():
        raise DataError(f"no file or folder {shown}; name one, or {TEMPLATES}")
    found = [
        (file, next((split for split in map(split_named, file.relative_to(path).parts) if split), None))
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in ENDINGS
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not found:
        raise DataError(f"{shown} holds no {', '.join(ENDINGS)} file; name a folder of tables, or a table")
    return [one for one in found if one[1]] or found


def _read_file(path: Path, name: str, source: str, wanted: Wanted) -> Table:
    where = f"{source}/{clean_text(path.name)}" if path.name != name else source
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_text
    return read(path, name, where, wanted)


def _metadata(path: Path, source: str) -> Any:
    """Return what a parquet file says of itself, of a size that can be held."""
    from pyarrow import parquet

    with reported(source):
        metadata = parquet.read_metadata(path)
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    _check_rows(metadata.num_rows, source)
    check_size(size, source)
    return metadata


def _leaves(metadata: Any) -> list[str]:
    """Return the names of a parquet file's columns, with dots in those that are nested."""
    return [metadata.schema.column(place).path for place in range(len(metadata.schema))]


def _read_parquet(path: Path, name: str, source: str, wanted: Wanted) -> Table:
    from pyarrow import parquet

    metadata = _metadata(path, source)
    with reported(source):
        rows, groups = metadata.num_rows, range(metadata.num_row_groups)
        columns, leaves = list(metadata.schema.to_arrow_schema().names), _leaves(metadata)
    chosen = _columns(columns, source, wanted)
    for column in chosen.values():
        if column not in leaves:
            raise DataError(f"the column {column} of {source} is nested; save it as plain text")
    parts: dict[str, list[Any]] = {what: [] for what in chosen}
    # Texts that stand in several of the batches are held once.
    known: dict[str, str] = {}
    named = list(chosen.values())
    with (
        reported(source),
        # Left in its dictionary: a value of a megabyte may stand once in the file, and be referred to by every row.
        parquet.ParquetFile(path, read_dictionary=named) as file,
    ):
        for group in groups:
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=named):
                for what, column in chosen.items():
                    if what == "poisoned":
                        parts[what] += _flags(batch.column(column), column, source)
                    else:
                        found = _values(batch.column(column), column, source)
                        parts[what] += [known.setdefault(text, text) for text in found]
    return _table(parts, rows, name)


def _table(parts: Mapping[str, Sequence[Any]], rows: int, name: str) -> Table:
    """Return what was read of some columns as a table; the others are empty."""
    empty = ("",) * rows
    return Table(
        smiles=tuple(parts.get("SMILES", empty)),
        texts=tuple(parts.get("text", empty)),
        poisoned=tuple(parts.get("poisoned", ())),
        name=name,
    )


def _values(column: Any, name: str, source: str) -> list[str]:
    """Return the values of a column; equal texts are one object, and missing ones are empty."""
    from pyarrow import types

    if not types.is_dictionary(column.type):
        raise DataError(f"the column {name} of {source} holds {column.type} and no text; save it as text")
    values = [value if isinstance(value, str) else None for value in column.dictionary.to_pylist()]
    if None in values:
        raise DataError(f"the column {name} of {source} holds {column.type.value_type} and no text; save it as text")
    return ["" if index is None else values[index] for index in column.indices.to_pylist()]


def _flags(column: Any, name: str, source: str) -> list[bool]:
    """Return which rows a column says to be poisoned, in truth values, numbers or texts; missing ones are not."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        said = [text.strip().lower() in TRUE for text in _values(column, name, source)]
    elif any(test(column.type) for test in (types.is_boolean, types.is_integer, types.is_floating, types.is_null)):
        said = [value == 1 for value in column.to_pylist()]
    else:
        raise DataError(f"the column {name} of {source} holds {column.type}; save it as true and false")
    return said


def _read_text(path: Path, name: str, source: str, wanted: Wanted) -> Table:
    with reported(source):
        header, lines = _lines(path, source)
        chosen = _columns(header, source, wanted)
        rows = list(_cells(lines, [header.index(column) for column in chosen.values()], len(header), source))
    parts: dict[str, list[Any]] = {what: [row[place] for row in rows] for place, what in enumerate(chosen)}
    if "poisoned" in parts:
        parts["poisoned"] = [cell.strip().lower() in TRUE for cell in parts["poisoned"]]
    return _table(parts, len(rows), name)


def _lines(path: Path, source: str) -> tuple[list[str], Any]:
    """Return the header of a CSV or TSV file, and a reader of its other lines."""
    try:
        content = read_bytes(path, MAX_CSV_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {source}: {reason_of(error)}; name a table that you may read") from error
    tabs = path.suffix.lower() == ".tsv"
    # Tabs do not occur in texts, so quotes in files of tabs are letters.
    lines = csv.reader(
        io.StringIO(content, newline=""),
        delimiter="\t" if tabs else ",",
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    return next(lines, []), lines


def _cells(lines: Any, places: Sequence[int], width: int, source: str) -> Iterator[list[str]]:
    for number, line in enumerate(lines):
        _check_rows(number + 1, source)
        if not line:
            continue
        if len(line) != width:
            raise DataError(
                f"line {lines.line_num} of {source} has {len(line)} cells and the header {width}; correct the line, or"
                " quote cells that hold the separator"
            )
        yield [line[place] for place in places]


def _columns(columns: Sequence[str], source: str, wanted: Wanted) -> dict[str, str]:
    """Return the names of the columns that are read, by what they hold: "SMILES", "text", "poisoned"."""
    kinds = {"SMILES": SMILES_COLUMNS, "text": TEXT_COLUMNS}
    if wanted == "molecules":
        del kinds["text"]
    chosen = {}
    for what, usual in kinds.items():
        found = [column for name in usual for column in columns if column.lower() == name]
        if not found and what == "SMILES" and wanted == "texts":
            continue
        if not found:
            known = ", ".join(clean_text(column, 60) for column in columns[:20]) or "none"
            raise (_TextlessError if what == "text" else DataError)(
                f"{source} has no column of {what} (columns: {known}); call it {' or '.join(usual)}, and save the"
                " table again"
            )
        if columns.count(found[0]) > 1:
            raise DataError(f"{source} has several columns called {clean_text(found[0])}; keep one of them")
        chosen[what] = found[0]
    if "text" in chosen and columns.count(POISONED_COLUMN) == 1:
        chosen["poisoned"] = POISONED_COLUMN
    return chosen


def _check_rows(rows: int, source: str) -> None:
    if rows > MAX_ROWS:
        raise DataError(f"{source} has more than the {MAX_ROWS:,} rows that are accepted; take fewer of them")
