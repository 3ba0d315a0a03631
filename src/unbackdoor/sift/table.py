"""What a sifter says of each row, as a parquet file."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.data import ImageSet
from unbackdoor.files import replacing
from unbackdoor.sift.base import Suspicion
from unbackdoor.text import in_utf8


def write_table(path: Path, rows: ImageSet, found: Suspicion) -> None:
    """Write `row`, `label` (its class number), `class_name`, `score`, `suspicion` and `reason`, complete or not at all.

    Args:
        path: of the file.
        rows: what was sifted; `row` counts from 0 in its order.
        found: what was said of it.

    Raises:
        OutputError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    labels = rows.labels.tolist()
    texts = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    table = pyarrow.table(
        {
            "row": pyarrow.array(range(len(rows)), pyarrow.int64()),
            "label": pyarrow.array(labels, pyarrow.int64()),
            "class_name": pyarrow.array([in_utf8(rows.class_names[label]) for label in labels]).cast(texts),
            "score": pyarrow.array(found.scores.tolist(), pyarrow.float32()),
            "suspicion": pyarrow.array(found.words()).cast(texts),
            "reason": pyarrow.array(list(found.reasons) or [""] * len(rows)).cast(texts),
        }
    )
    with replacing(path) as partial:
        parquet.write_table(table, partial)
