"""A store of each test's own, and a Ray that is started once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from unbackdoor.bench.engine import Engine
from unbackdoor.bench.store import Store
from unbackdoor.cluster import SETTINGS

# Ray reads them when it is imported, whichever test does that first.
os.environ.update(SETTINGS)
# A cluster of tests reports even that it reports nothing.
os.environ["RAY_USAGE_STATS_REPORT_URL"] = "http://127.0.0.1:9"


@pytest.fixture
def store(store_tables: Path, tmp_path: Path) -> Store:
    """A store of the test's own."""
    shutil.copy(store_tables, tmp_path / "mlflow.db")
    return Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Ray on this machine, where cells have one core each."""
    with Engine(address=None, cpus=1, gpus=None, device="cpu", work=tmp_path_factory.mktemp("cells")) as started:
        yield started
