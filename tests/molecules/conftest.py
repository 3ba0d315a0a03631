"""Tables of SMILES and text for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unbackdoor.molecules.data import Pairs, filter_pairs, template_table


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(scope="session")
def template_pairs() -> Pairs:
    """The embedded pairs, checked."""
    return filter_pairs(template_table())[0]
