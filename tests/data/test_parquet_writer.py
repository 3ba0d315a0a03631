"""What is written as parquet is read back, by us and by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.attacks.test_badnets import some
from unbackdoor.data import read_images
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.errors import DataError, OutputError


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(channels=st.sampled_from([1, 3]), height=st.integers(1, 20), width=st.integers(1, 20), count=st.integers(5, 30))
def test_every_pixel_and_label_comes_back(tmp_path: Path, channels: int, height: int, width: int, count: int) -> None:
    images = some(count, (channels, height, width))
    path = tmp_path / f"{channels}-{height}-{width}-{count}" / "data" / "train-00000-of-00001.parquet"
    flags = torch.arange(count) % 2 == 0
    write_parquet(path, images, {"original_label": images.labels.flip(0), "poisoned": flags})
    back = read_images(path.parent.parent, "train")
    assert torch.equal(back.images, images.images)
    assert torch.equal(back.labels, images.labels)
    assert back.class_names == images.class_names


def test_others_read_all_columns(tmp_path: Path) -> None:
    import datasets

    images = some(20)
    flags = torch.arange(20) < 3
    write_parquet(tmp_path / "train.parquet", images, {"original_label": images.labels.flip(0), "poisoned": flags})
    read = datasets.load_dataset("parquet", data_files=str(tmp_path / "train.parquet"), split="train")
    assert read.column_names == ["image", "label", "original_label", "poisoned"]
    assert read["poisoned"][:] == flags.tolist()
    assert read["original_label"][:] == images.labels.flip(0).tolist()
    assert read.features["label"].names == list(images.class_names)
    assert read[0]["image"].size == (32, 32)


def test_images_of_four_channels_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="images of 4 channels"):
        write_parquet(tmp_path / "train.parquet", some(5, (4, 8, 8)), {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_parquet(tmp_path / "file" / "train.parquet", some(5), {})


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    images = some(10)
    with pytest.raises(DataError, match=r"two classes of .* have one name"):
        write_parquet(tmp_path / "train.parquet", replace(images, class_names=("a", "a", "b", "c", "d")), {})


def test_more_rows_than_a_group_holds_come_back_in_order(tmp_path: Path) -> None:
    images = some(2500, (1, 2, 2))
    write_parquet(tmp_path / "train.parquet", images, {})
    back = read_images(tmp_path, "train")
    assert torch.equal(back.images, images.images)
    assert torch.equal(back.labels, images.labels)
