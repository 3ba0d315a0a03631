"""Reading tables of SMILES and text: parquet, CSV and TSV, one file or a folder of them; everything may be hostile.

Nothing in a table is run or followed; numbers of rows and sizes are bounded before anything is unpacked.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
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
BATCH = 10_000
"""Rows that are unpacked at a time."""

Split = Literal["all", "test"]


def read_table(source: str, split: Split, *, texts: bool = True) -> Table:
    """Return the rows of a source as they are.

    Args:
        source: "templates" (made here), a parquet, CSV or TSV file, or a folder of such files. The names of files in
            a folder, or of folders on the way to them, say their split (`train.parquet`, `test-00000.parquet`).
        split: "all", or "test": the test split, or the validation split where there is no other. A source without
            splits is returned whole.
        texts: whether texts are wanted; without them no column of texts is looked for, and all of them are empty.

    Raises:
        DataError: it cannot be read, or has no column of SMILES or of text.
    """
    return joined([table for _, table in read_parts(source, split, texts=texts)])


def read_parts(source: str, split: Split = "all", *, texts: bool = True) -> list[tuple[str | None, Table]]:
    """Return the rows of each file of a source as they are, with the split that it belongs to.

    Args:
        source: see `read_table`.
        split: see `read_table`.
        texts: see `read_table`.

    Raises:
        DataError: see `read_table`.
    """
    if source == TEMPLATES:
        return [(None, template_table())]
    path = Path(source)
    shown = clean_text(source)
    files = _files(path, shown)
    if split == "test":
        splits = {found for _, found in files if found is not None}
        wanted = choose_split("test", splits, shown) if splits else None
        files = [(file, found) for file, found in files if found == wanted]
    name = source_name(path)
    return [(found, _read_file(file, name, shown, texts)) for file, found in files]


def has_test_split(source: str) -> bool:
    """Return whether a source has a split that `read_table` gives as "test"."""
    if source == TEMPLATES:
        return False
    splits = {found for _, found in _files(Path(source), clean_text(source))}
    return bool(splits & {"test", "validation"})


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


def _read_file(path: Path, name: str, source: str, texts: bool) -> Table:
    where = f"{source}/{clean_text(path.name)}" if path.name != name else source
    read = _read_parquet if path.suffix.lower() == ".parquet" else _read_text
    return read(path, name, where, texts)


def _read_parquet(path: Path, name: str, source: str, texts: bool) -> Table:
    from pyarrow import parquet

    with reported(source):
        metadata = parquet.read_metadata(path)
        rows, groups = metadata.num_rows, range(metadata.num_row_groups)
        size = sum(metadata.row_group(i).total_byte_size for i in groups)
        columns = list(metadata.schema.to_arrow_schema().names)
    _check_rows(rows, source)
    check_size(size, source)
    wanted = _columns(columns, source, texts)
    parts: dict[str, list[Any]] = {column: [] for column in wanted}
    with (
        reported(source),
        # Left in its dictionary: a value of a megabyte may stand once in the file, and be referred to by every row.
        parquet.ParquetFile(path, read_dictionary=list(wanted[:2])) as file,
    ):
        for group in groups:
            for batch in file.iter_batches(BATCH, row_groups=[group], columns=list(wanted)):
                for column in wanted:
                    parts[column] += _values(batch.column(column), column, source)
    smiles = tuple(parts[wanted[0]])
    flags = tuple(bool(value) for value in parts[wanted[2]]) if len(wanted) > 2 else ()
    return Table(smiles=smiles, texts=tuple(parts[wanted[1]]) if texts else ("",) * rows, poisoned=flags, name=name)


def _values(column: Any, name: str, source: str) -> list[Any]:
    """Return the values of a column; equal texts are one object, and missing ones are empty."""
    from pyarrow import types

    if types.is_boolean(column.type):
        return list(column.to_pylist())
    if not types.is_dictionary(column.type):
        raise DataError(f"the column {name} of {source} holds {column.type} and no text; save it as text")
    values = [value if isinstance(value, str) else None for value in column.dictionary.to_pylist()]
    if None in values:
        raise DataError(f"the column {name} of {source} holds {column.type.value_type} and no text; save it as text")
    return ["" if index is None else values[index] for index in column.indices.to_pylist()]


def _read_text(path: Path, name: str, source: str, texts: bool) -> Table:
    try:
        content = read_bytes(path, MAX_CSV_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{source} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {source}: {reason_of(error)}; name a table that you may read") from error
    tabs = path.suffix.lower() == ".tsv"
    with reported(source):
        # Tabs do not occur in texts, so quotes in files of tabs are letters.
        lines = csv.reader(
            io.StringIO(content, newline=""),
            delimiter="\t" if tabs else ",",
            quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
            strict=True,
        )
        header = next(lines, [])
        wanted = _columns(header, source, texts)
        places = [header.index(column) for column in wanted]
        rows = list(_cells(lines, places, len(header), source))
    flags = tuple(row[2].strip().lower() in ("1", "true") for row in rows) if len(wanted) > 2 else ()
    told = tuple(row[1] if texts else "" for row in rows)
    return Table(smiles=tuple(row[0] for row in rows), texts=told, poisoned=flags, name=name)


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


def _columns(columns: Sequence[str], source: str, texts: bool) -> tuple[str, ...]:
    """Return the names of the columns of SMILES and, if wanted, of text and, where it is there, of what is poisoned."""
    chosen = []
    for what, usual in (("SMILES", SMILES_COLUMNS), *([("text", TEXT_COLUMNS)] if texts else [])):
        found = [column for name in usual for column in columns if column.lower() == name]
        if not found:
            known = ", ".join(clean_text(column, 60) for column in columns[:20]) or "none"
            raise DataError(
                f"{source} has no column of {what} (columns: {known}); call it {' or '.join(usual)}, and save the"
                " table again"
            )
        if columns.count(found[0]) > 1:
            raise DataError(f"{source} has several columns called {clean_text(found[0])}; keep one of them")
        chosen.append(found[0])
    return (*chosen, *([POISONED_COLUMN] if texts and columns.count(POISONED_COLUMN) == 1 else []))


def _check_rows(rows: int, source: str) -> None:
    if rows > MAX_ROWS:
        raise DataError(f"{source} has more than the {MAX_ROWS:,} rows that are accepted; take fewer of them")
