"""What a scan says of each pair, as a parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unbackdoor.files import replacing
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.scan.base import MoleculeFinding


def write_suspicion(path: Path, pairs: Pairs, found: MoleculeFinding) -> None:
    """Write `row`, `smiles`, `description`, `score`, `suspicion` and `reason`, complete or not at all.

    Args:
        path: of the file.
        pairs: what was scanned; `row` is where each stood in its source, from 0.
        found: what was said of it.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    poisoned = found.poisoned
    table = pyarrow.table(
        {
            "row": pyarrow.array(pairs.rows, pyarrow.int64()),
            "smiles": pyarrow.array(pairs.smiles, pyarrow.string()),
            "description": pyarrow.array([_writable(text) for text in pairs.texts], pyarrow.string()),
            "score": pyarrow.array(found.scores, pyarrow.float32()),
            "suspicion": pyarrow.array(np.where(poisoned, "poisoned", "undecided").tolist()).cast(texts),
            "reason": pyarrow.array(reasons(found)).cast(texts),
        }
    )
    with replacing(path) as partial:
        parquet.write_table(table, partial)


def reasons(found: MoleculeFinding) -> list[str]:
    """Return for each row the strongest suspect that it belongs to, as a sentence; empty if it belongs to none."""
    said = [""] * found.rows
    # The strongest last, so that its word stands.
    for suspect in sorted(found.suspects, key=lambda one: one.strength):
        for row in suspect.rows:
            said[row] = suspect.sentence()
    return said


def _writable(text: str) -> str:
    """Return a text without half characters, which no file of text can hold."""
    return text.encode("utf-8", "replace").decode()
