"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unbackdoor.data import ImageSet

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the tests' decoded images out of the user's cache, shared within one run."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(folder))


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets beside the repository, or a skip."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data sets are not there: no folder {SHARED_DATA.name} in ../shared")
    return SHARED_DATA


@pytest.fixture(scope="session")
def store_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an empty store of the bench: its tables take seconds to make, so tests copy it."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def tiny_images() -> ImageSet:
    """120 random colour images of 16 x 16 in 4 classes, 30 each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageSet(images=images, labels=torch.arange(120) % 4, class_names=("a", "b", "c", "d"), name="tiny")
