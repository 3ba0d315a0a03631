"""Writing pairs as a parquet file, which `read_table` and others read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unbackdoor.files import replacing
from unbackdoor.molecules.data.table import Table


def write_table(path: Path, table: Table, **columns: list[Any]) -> None:
    """Write the rows, complete or not at all.

    Args:
        path: of the file.
        table: becomes the columns `smiles`, `description` and, where it says what is poisoned, `poisoned`.
        **columns: more of them, one value a row.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    content: dict[str, Any] = {"smiles": list(table.smiles), "description": list(table.texts)}
    if table.poisoned:
        content["poisoned"] = list(table.poisoned)
    with replacing(path) as partial:
        parquet.write_table(pyarrow.table({**content, **columns}), partial)
