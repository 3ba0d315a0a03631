"""The table of rows holds what was said of each, in the order of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from pyarrow import parquet

from unbackdoor.data import ImageSet
from unbackdoor.sift import Suspicion
from unbackdoor.sift.table import write_table


def test_every_row_is_there_with_what_was_said_of_it(tmp_path: Path, tiny_images: ImageSet) -> None:
    rows = tiny_images.subset(torch.arange(3))
    found = Suspicion(
        scores=torch.tensor([0.5, -1.0, 2.0]),
        clean=torch.tensor([False, True, False]),
        poisoned=torch.tensor([False, False, True]),
        reasons=["so", "la la", "=HYPERLINK(1)"],
    )
    write_table(tmp_path / "out" / "rows.parquet", rows, found)
    assert parquet.read_table(tmp_path / "out" / "rows.parquet").to_pylist() == [
        {"row": 0, "label": 0, "class_name": "a", "score": 0.5, "suspicion": "undecided", "reason": "so"},
        {"row": 1, "label": 1, "class_name": "b", "score": -1.0, "suspicion": "clean", "reason": "la la"},
        {"row": 2, "label": 2, "class_name": "c", "score": 2.0, "suspicion": "poisoned", "reason": "=HYPERLINK(1)"},
    ]


def test_without_reasons_they_are_empty(tmp_path: Path, tiny_images: ImageSet) -> None:
    nothing = torch.zeros(120, dtype=torch.bool)
    found = Suspicion(scores=torch.zeros(120), clean=nothing, poisoned=nothing)
    write_table(tmp_path / "rows.parquet", tiny_images, found)
    assert parquet.read_table(tmp_path / "rows.parquet")["reason"].to_pylist() == [""] * 120


def test_names_of_folders_that_are_no_text_can_be_written(tmp_path: Path, tiny_images: ImageSet) -> None:
    """A folder that was named in Latin 1 has such a name."""
    rows = replace(tiny_images, class_names=("caf\udce9", "b", "c", "d"))
    nothing = torch.zeros(120, dtype=torch.bool)
    write_table(tmp_path / "rows.parquet", rows, Suspicion(scores=torch.zeros(120), clean=nothing, poisoned=nothing))
    names = parquet.read_table(tmp_path / "rows.parquet")["class_name"].to_pylist()
    assert names[0] == "caf\\udce9"
