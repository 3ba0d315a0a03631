from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from tests.data.generated import channels_first, encoded, random_pixels
from unbackdoor.data import read_images
from unbackdoor.errors import DataError

PIXELS = random_pixels(24)
LABELS = [row % 3 for row in range(24)]


def part(rows: slice) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])})
    cells = [{"bytes": encoded(image), "path": None} for image in PIXELS[rows]]
    return datasets.Dataset.from_dict({"image": cells, "label": LABELS[rows]}, features=features)


def pretend(monkeypatch: pytest.MonkeyPatch, found: Any) -> list[Any]:
    """Let the hub answer with `found`; return the list of what it is asked."""
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        if isinstance(found, Exception):
            raise found
        return datasets.DatasetDict(found)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("source", ["cifar10", "owner/cifar10"])
def test_a_name_that_is_no_path_is_asked_of_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = pretend(monkeypatch, {"train": part(slice(0, 18)), "test": part(slice(18, 24))})
    images = read_images(source, "test")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS[18:]))
    assert images.labels.tolist() == LABELS[18:]
    assert images.class_names == ("cat", "dog", "emu")
    assert images.name == "cifar10/test"
    # Nothing beside the name: no remote code is allowed.
    assert asked == [((source,), {})]


def test_a_set_without_splits_which_datasets_calls_train_is_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"train": part(slice(0, 24))})
    assert [len(read_images("owner/set", split)) for split in ("any", "train", "test")] == [24, 18, 6]


def test_other_splits_are_passed_over_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(
        monkeypatch,
        {"train_extra": part(slice(18, 24)), "train": part(slice(0, 18)), "dev": part(slice(18, 24))},
    )
    assert len(read_images("owner/set", "train")) == 18
    with pytest.raises(DataError, match="has no test split; it has: train"):
        read_images("owner/set", "test")
    pretend(monkeypatch, {"fold1": part(slice(0, 18)), "fold2": part(slice(18, 24))})
    with pytest.raises(DataError, match="has the splits fold1, fold2, and none of them is for training or testing"):
        read_images("owner/set", "train")


@pytest.mark.parametrize(
    "error",
    [ConnectionError("Couldn't reach it\nsecond line"), datasets.exceptions.DatasetNotFoundError("gone")],
)
def test_a_hub_that_cannot_be_reached_is_said_in_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, error)
    with pytest.raises(
        DataError,
        match=r"^owner/set is no file or folder here, and .* hub: (Couldn't reach it|gone); check the spelling",
    ) as raised:
        read_images("owner/set", "train")
    assert "\n" not in str(raised.value)


def test_offline_mode_of_datasets_is_an_error_sentence(monkeypatch: pytest.MonkeyPatch, connections: list[Any]) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="cannot be had from the Hugging Face hub"):
        read_images("owner/no-such-set", "train")
    assert connections == []


def test_what_datasets_keeps_on_disk_is_cached_by_content_and_what_it_does_not_keep_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, {"train": part(slice(0, 24))})
    read_images("owner/set", "any")
    assert not (tmp_path / "cache").exists()
    for name, rows in (("one", slice(0, 24)), ("two", slice(0, 21))):
        datasets.DatasetDict({"train": part(rows)}).save_to_disk(str(tmp_path / name))
        pretend(monkeypatch, datasets.load_from_disk(str(tmp_path / name)))
        images = read_images("owner/set", "any")
        assert np.array_equal(images.images.numpy(), channels_first(PIXELS[rows]))
    assert len(list((tmp_path / "cache").iterdir())) == 2
