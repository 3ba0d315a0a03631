from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.generated import channels_first, encoded, random_pixels, write_folder
from unbackdoor.data import read_images
from unbackdoor.errors import DataError

NAMES = ("zebra", "Ant", "cow")
PIXELS = random_pixels(24)
LABELS = [row % 3 for row in range(24)]


def in_class_order(rows: range) -> list[int]:
    """Rows as the reader orders them: classes by name (Ant, cow, zebra), then by file."""
    return sorted(rows, key=lambda row: (NAMES[LABELS[row]], row))


def test_png_folders_come_back_exactly_with_classes_sorted_by_name(
    tmp_path: Path, connections: list[Any], unpickled: list[str]
) -> None:
    images = read_images(write_folder(tmp_path / "pictures", PIXELS, LABELS, NAMES), "any")
    order = in_class_order(range(24))
    assert images.class_names == ("Ant", "cow", "zebra")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS)[order])
    assert [images.class_names[label] for label in images.labels] == [NAMES[LABELS[row]] for row in order]
    assert images.name == "pictures/any"
    assert connections == []
    assert unpickled == []


def test_a_file_too_large_for_an_image_is_refused_before_it_is_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_folder(tmp_path / "pictures", PIXELS, LABELS, NAMES)
    with (root / "cow" / "x.png").open("wb") as sparse:
        sparse.truncate(2**40)
    monkeypatch.setattr("unbackdoor.data.cache.hashlib.file_digest", lambda *_: pytest.fail("hashed"))
    with pytest.raises(DataError, match=r"image cow/x\.png of .*pictures has 1,099,511,627,776 bytes, more than 268"):
        read_images(root, "any")


@pytest.mark.parametrize("second", ["test", "val", "valid", "validation", "Test"])
def test_splits_are_folders_and_the_validation_split_stands_in_for_the_test_split(tmp_path: Path, second: str) -> None:
    root = tmp_path / "pictures"
    write_folder(root / "train", PIXELS[:18], LABELS[:18], NAMES)
    write_folder(root / second, PIXELS[18:], LABELS[18:], NAMES)
    train, test = read_images(root, "train"), read_images(root, "test")
    assert np.array_equal(train.images.numpy(), channels_first(PIXELS)[in_class_order(range(18))])
    assert np.array_equal(test.images.numpy(), channels_first(PIXELS)[in_class_order(range(18, 24))])
    assert read_images(root, "any").digest() == train.digest()
    assert test.name == ("pictures/test" if second.lower() == "test" else "pictures/validation")


def test_the_test_split_is_preferred_to_the_validation_split(tmp_path: Path) -> None:
    for folder, value in (("train", 1), ("val", 2), ("test", 3)):
        write_folder(tmp_path / "p" / folder, np.full((3, 4, 4, 3), value, np.uint8), [0, 1, 2], NAMES)
    assert read_images(tmp_path / "p", "test").images.unique().tolist() == [3]


def test_a_class_has_the_same_number_where_a_split_lacks_some_other_class(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    write_folder(root / "train", PIXELS, LABELS, NAMES)
    write_folder(root / "test", PIXELS[:4], [0, 2, 0, 2], NAMES)  # no Ant
    test = read_images(root, "test")
    assert test.class_names == ("Ant", "cow", "zebra")
    assert test.labels.tolist() == [1, 1, 2, 2]


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "vehicles", PIXELS, LABELS, ("bus", "train", "test tubes"))
    assert read_images(root, "any").class_names == ("bus", "test tubes", "train")


def test_images_deeper_below_a_class_belong_to_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", PIXELS, LABELS, ("a/images", "a/more/images", "b"))
    images = read_images(root, "any")
    assert images.class_names == ("a", "b")
    assert images.class_counts().tolist() == [16, 8]


def test_other_files_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", PIXELS, LABELS, NAMES)
    (root / "cow" / "Thumbs.db").write_bytes(b"x")
    (root / "cow" / "._001.png").write_bytes(b"x")
    (root / "cow" / "folder.png").mkdir()
    (root / "README.md").write_text("x")
    (root / "empty").mkdir()
    write_folder(root, PIXELS[:2], [0, 1], (".hidden", "__MACOSX"))
    images = read_images(root, "any")
    assert len(images) == 24
    assert images.class_names == ("Ant", "cow", "zebra")


def test_folders_beside_the_splits_are_mentioned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "p"
    write_folder(root / "train", PIXELS, LABELS, NAMES)
    write_folder(root, PIXELS[:1], [0], ("bus",))
    with caplog.at_level(logging.WARNING):
        assert len(read_images(root, "train")) == 24
    assert "not read, as they lie beside the splits: bus" in caplog.text


def test_a_folder_without_splits_is_divided(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", random_pixels(30), [row % 3 for row in range(30)], NAMES)
    train, test = read_images(root, "train"), read_images(root, "test")
    assert (train.class_counts().tolist(), test.class_counts().tolist()) == ([8, 8, 8], [2, 2, 2])
    assert (train.name, test.name) == ("p/train", "p/test")


def test_every_suffix_of_an_image_is_taken_whatever_its_case(tmp_path: Path) -> None:
    for row, (kind, suffix) in enumerate([("PNG", "PNG"), ("BMP", "bmp"), ("PPM", "ppm"), ("PNG", "jpg")]):
        file = tmp_path / "p" / f"class{row % 2}" / f"{row}.{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(PIXELS[row], kind))  # by content: the last is a PNG called .jpg
    images = read_images(tmp_path / "p", "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS)[[0, 2, 1, 3]])


def test_a_broken_image_is_named_without_control_codes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", PIXELS, LABELS, NAMES)
    (root / "cow" / "bad\x1b[2J.png").write_bytes(encoded(PIXELS[0])[:50])
    with pytest.raises(DataError, match=r"cannot decode image cow/bad\.png of .*/p: ") as raised:
        read_images(root, "any")
    assert "\x1b" not in str(raised.value)


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "p", PIXELS, [0] * 24, ("only",))
    with pytest.raises(DataError, match=r"all 24 images of .*/p are of class 0; a data set needs at least two"):
        read_images(root, "any")


@pytest.mark.parametrize("content", ["nothing", "loose images", "text"])
def test_a_folder_without_class_folders_says_how_to_arrange_it(tmp_path: Path, content: str) -> None:
    root = tmp_path / "p"
    root.mkdir()
    if content == "loose images":
        (root / "1.png").write_bytes(encoded(PIXELS[0]))
    if content == "text":
        (root / "sub").mkdir()
        (root / "sub" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds neither parquet files nor images in a folder a class; arrange it"):
        read_images(root, "any")


def test_a_missing_split_names_what_is_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "p" / "val", PIXELS, LABELS, NAMES)
    with pytest.raises(DataError, match="has no training split; it has: validation"):
        read_images(tmp_path / "p", "train")
