from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.data.generated import CLASS_FEATURES, channels_first, encoded, random_pixels, write_parquet
from unbackdoor.data import limits, parquet, read_images
from unbackdoor.data.shards import Shards
from unbackdoor.data.tables import BATCH
from unbackdoor.errors import DataError

PIXELS = random_pixels(24)
LABELS = [row % 3 for row in range(24)]


def rows(pixels: np.ndarray = PIXELS) -> list[Any]:
    return list(pixels)


def test_a_parquet_file_comes_back_exactly_and_without_the_network(
    tmp_path: Path, connections: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    images = read_images(write_parquet(tmp_path / "a.parquet", rows(), LABELS), "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))
    assert images.labels.tolist() == LABELS
    assert images.class_names == ("cat", "dog", "emu")
    assert images.name == "a.parquet/any"
    assert connections == []
    assert capfd.readouterr() == ("", "")


def test_what_was_set_in_datasets_is_as_before(tmp_path: Path) -> None:
    before = datasets.config.HF_HUB_OFFLINE, datasets.utils.are_progress_bars_disabled()
    read_images(write_parquet(tmp_path / "a.parquet", rows(), LABELS), "any")
    with pytest.raises(DataError):
        read_images(write_parquet(tmp_path / "b.parquet", [b"broken"] * 24, LABELS), "any")
    assert (datasets.config.HF_HUB_OFFLINE, datasets.utils.are_progress_bars_disabled()) == before


@pytest.mark.parametrize(
    ("train", "test", "name"),
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet", "test"),
        ("train.parquet", "validation.parquet", "validation"),
        ("data/train-0.parquet", "data/test-0.parquet", "test"),
        ("default/train/0000.parquet", "default/test/0000.parquet", "test"),
        ("train_a.parquet", "valid.parquet", "validation"),
    ],
)
def test_files_belong_to_the_split_that_their_name_begins_with(
    tmp_path: Path, train: str, test: str, name: str
) -> None:
    root = tmp_path / "set"
    write_parquet(root / train, rows(PIXELS[:18]), LABELS[:18])
    write_parquet(root / test, rows(PIXELS[18:]), LABELS[18:])
    write_parquet(root / "extra.parquet", rows(random_pixels(3, seed=5)), [0, 1, 2])
    assert np.array_equal(read_images(root, "train").images.numpy(), channels_first(PIXELS[:18]))
    assert np.array_equal(read_images(root, "any").images.numpy(), channels_first(PIXELS[:18]))
    found = read_images(root, "test")
    assert np.array_equal(found.images.numpy(), channels_first(PIXELS[18:]))
    assert found.name == f"set/{name}"


def test_several_files_of_a_split_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for part in (2, 0, 1):
        write_parquet(
            tmp_path / "set" / f"train-{part}.parquet",
            rows(PIXELS[8 * part : 8 * part + 8]),
            LABELS[8 * part : 8 * part + 8],
        )
    images = read_images(tmp_path / "set", "train")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))
    assert images.labels.tolist() == LABELS


def test_files_that_name_no_split_are_one_set_and_divided(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "0000.parquet", rows(), LABELS)
    train, test = read_images(tmp_path / "set", "train"), read_images(tmp_path / "set", "test")
    assert (train.class_counts().tolist(), test.class_counts().tolist()) == ([6, 6, 6], [2, 2, 2])
    assert len(read_images(tmp_path / "set", "any")) == 24


def test_one_file_is_divided_even_if_it_is_called_train(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "train.parquet", rows(), LABELS)
    assert (len(read_images(path, "any")), len(read_images(path, "test"))) == (24, 6)


def test_shuffled_rows_give_the_same_train_and_test_members(tmp_path: Path) -> None:
    order = np.random.default_rng(3).permutation(24)
    plain = write_parquet(tmp_path / "a.parquet", rows(), LABELS)
    shuffled = write_parquet(tmp_path / "b.parquet", rows(PIXELS[order]), [LABELS[row] for row in order])
    for split in ("train", "test"):
        members = [
            sorted((int(label), image.numpy().tobytes()) for image, label in zip(found.images, found.labels))
            for found in (read_images(plain, split), read_images(shuffled, split))
        ]
        assert members[0] == members[1]


@pytest.mark.parametrize("name", ["we[i]rd na*me?", "ünïcode {a,b}", ".hidden", "hf:x"])
def test_folder_names_are_taken_literally(tmp_path: Path, name: str) -> None:
    write_parquet(tmp_path / name / "train[0].parquet", rows(), LABELS)
    write_parquet(tmp_path / "weird name" / "train0.parquet", rows(PIXELS[:2]), LABELS[:2])
    assert len(read_images(tmp_path / name, "train")) == 24


def test_a_relative_path_and_a_symbolic_link_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", rows(), LABELS)
    (tmp_path / "link").symlink_to("set")
    monkeypatch.chdir(tmp_path)
    assert read_images("set", "train").name == "set/train"
    assert read_images("link/", "train").name == "link/train"
    monkeypatch.chdir(tmp_path / "set")
    assert read_images(".", "train").name == "set/train"


def test_without_features_the_columns_are_found_by_their_types(tmp_path: Path) -> None:
    root = tmp_path / "set"
    write_parquet(root / "train.parquet", rows(PIXELS[:18]), LABELS[:18], features=None)
    write_parquet(root / "test.parquet", rows(PIXELS[18:20]), LABELS[18:20], features=None)
    train, test = read_images(root, "train"), read_images(root, "test")
    assert np.array_equal(train.images.numpy(), channels_first(PIXELS[:18]))
    # The test labels stop at 1, and the training labels at 2.
    assert train.class_names == test.class_names == ("0", "1", "2")


def test_a_column_of_plain_bytes_is_a_column_of_images(tmp_path: Path) -> None:
    table = pa.table({"picture": [encoded(image) for image in PIXELS], "kind": pa.array(LABELS, pa.uint8())})
    pq.write_table(table, tmp_path / "a.parquet")
    images = read_images(tmp_path / "a.parquet", "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))
    assert images.labels.tolist() == LABELS


def test_of_several_label_columns_the_one_called_label_is_taken(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS, features=None, other=[9] * 24)
    assert read_images(path, "any").labels.tolist() == LABELS


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"text": ["a"] * 24, "label": LABELS}, "no column that could hold the images, among: text, label;"),
        (
            {"a": [b""] * 24, "b": [b""] * 24, "label": LABELS},
            "several columns that could hold the images, among: a, b",
        ),
        ({"img": [b""] * 24}, "no column that could hold the labels, among: img;"),
        ({"img": [b""] * 24, "x": LABELS, "y": LABELS}, "several columns that could hold the labels"),
        ({"img": [b""] * 24, "label": ["cat"] * 24}, "no column that could hold the labels"),
        ({"img": [b""] * 24, "x\x1b[1m": ["a"] * 24}, r"among: img, x;"),
    ],
)
def test_columns_that_cannot_be_told_are_listed(tmp_path: Path, columns: dict[str, Any], sentence: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=sentence):
        read_images(tmp_path / "a.parquet", "any")


@pytest.mark.parametrize(
    ("labels", "features", "sentence"),
    [
        ([None, *LABELS[1:]], CLASS_FEATURES, "has rows whose label is missing"),
        ([-1, *LABELS[1:]], CLASS_FEATURES, "go down to -1"),
        (
            [3, *LABELS[1:]],
            CLASS_FEATURES,
            "labels run from 0 to 3, but there are 3 classes",
        ),
        ([10**12, *LABELS[1:]], None, "go up to 1000000000000, and at most 65,536 classes"),
        (
            [1] * 24,
            CLASS_FEATURES,
            "all 24 images of .* are of class 1; a data set needs at least two classes",
        ),
        ([], CLASS_FEATURES, "holds no images"),
    ],
)
def test_labels_that_make_no_classes_are_refused(
    tmp_path: Path, labels: list[Any], features: Any, sentence: str
) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows()[: len(labels)], labels, features=features)
    with pytest.raises(DataError, match=sentence):
        read_images(path, "any")


def test_a_broken_image_is_named_with_its_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*rows()[:17], encoded(PIXELS[17])[:50], *rows()[18:]], LABELS)
    with pytest.raises(
        DataError,
        match=r"cannot decode image pictures/17\.png \(row 17\) of .*a\.parquet: .*; replace or remove it",
    ):
        read_images(path, "any")


def test_two_sizes_are_refused_naming_two_images(tmp_path: Path) -> None:
    odd = random_pixels(1, (5, 5, 3))[0]
    path = write_parquet(tmp_path / "a.parquet", [*rows()[:11], odd, *rows()[12:]], LABELS)
    with pytest.raises(
        DataError,
        match=r"pictures/0\.png \(row 0\) is 8x6 and pictures/11\.png \(row 11\) is 5x5 pixels.*resize",
    ):
        read_images(path, "any")


@pytest.mark.parametrize("features", [CLASS_FEATURES, None])
def test_the_name_of_a_file_is_never_followed(tmp_path: Path, features: Any, connections: list[Any]) -> None:
    there = tmp_path / "private.png"
    there.write_bytes(encoded(PIXELS[0]))
    for place in (str(there), f"file://{there}", "https://example.org/1.png", None):
        cells = [{"bytes": None, "path": place}, *rows()[1:]]
        path = write_parquet(tmp_path / "a.parquet", cells, LABELS, features=features)
        with pytest.raises(DataError, match=r"image .*\(row 0\) of .* has no bytes"):
            read_images(path, "any")
    assert connections == []


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [*rows()[:5], None, *rows()[6:]], LABELS)
    with pytest.raises(DataError, match=r"image \(row 5\) of .* has no bytes"):
        read_images(path, "any")


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9, 0.99])
def test_damaged_files_are_refused_in_one_sentence(
    tmp_path: Path, place: float, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: int(place * len(content))])
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet: .*; fetch or write it anew") as raised:
        read_images(path, "any")
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_description_of_a_billion_classes_is_refused_quickly(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "num_classes": 10**9}}
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS, features=features)
    start = time.process_time()
    with pytest.raises(DataError, match="declares 1000000000 classes, and at most 65,536"):
        read_images(path, "any")
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "metadata",
    [
        "{",
        "[" * 100_000,
        json.dumps({"info": {"features": {"img": {"_type": "Path"}, "label": {"_type": "os"}}}}),
        json.dumps({"info": {"features": [1, 2]}}),
    ],
)
def test_nonsense_in_the_metadata_is_refused(tmp_path: Path, metadata: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS, features=None)
    table = pq.read_table(path).replace_schema_metadata({"huggingface": metadata})
    pq.write_table(table, path)
    with pytest.raises(DataError):
        read_images(path, "any")


@pytest.mark.parametrize("names", [[1, 2], [None, "a"], [["x"], ["y"]]])
def test_names_of_classes_are_texts(tmp_path: Path, names: list[Any]) -> None:
    features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS, features=features)
    for read in (lambda: read_images(path, "any"), lambda: Shards.of(path)):
        with pytest.raises(DataError, match=r"a\.parquet"):
            read()


def test_a_negative_number_of_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS)

    class Group:
        num_rows, total_byte_size = -10, 1

    class Metadata:
        num_rows, num_row_groups, metadata = -10, 1, None

        def row_group(self, number: int) -> Group:
            return Group()

    monkeypatch.setattr(pq, "read_metadata", lambda _: Metadata())
    with pytest.raises(DataError, match="other numbers of rows than it declares"):
        read_images(path, "any")


def test_a_description_of_columns_that_are_not_there_changes_nothing(tmp_path: Path) -> None:
    features = {"nothing": {"_type": "Image"}}
    images = read_images(write_parquet(tmp_path / "a.parquet", rows(), LABELS, features=features), "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))


def test_files_that_unpack_to_more_than_the_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", rows(), LABELS)
    monkeypatch.setattr(limits, "physical_memory", lambda: 1000)
    with pytest.raises(DataError, match="when it is unpacked"):
        read_images(path, "any")


def test_a_value_that_is_stored_once_is_not_unpacked_for_every_row(tmp_path: Path) -> None:
    """20 kB that refer 20,000 times to one value of 1 MB: as separate values they would take 20 GB."""
    image = encoded(PIXELS[0]) + bytes(2**20)
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {
            "img": pa.array([{"bytes": image, "path": "a" * 2**20}] * 256, struct),
            "label": [row % 2 for row in range(256)],
        }
    )
    options: dict[str, Any] = {"dictionary_pagesize_limit": 2**26, "compression": "zstd"}
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, **options) as writer:
        for _ in range(2):
            writer.write_table(table)
    assert (tmp_path / "a.parquet").stat().st_size < 20_000
    part = parquet._Part([tmp_path / "a.parquet"])
    pa.default_memory_pool().release_unused()
    before, most = pa.total_allocated_bytes(), 0
    for batch in part.batches(["img", "label"]):
        assert len(batch) <= BATCH
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 30 * 2**20
    images = read_images(tmp_path / "a.parquet", "any")
    assert images.images.shape == (512, 3, 6, 8)


@pytest.mark.parametrize(
    "options", [{"dictionary_pagesize_limit": 500}, {"use_dictionary": False}, {"data_page_size": 100}]
)
def test_values_come_back_however_the_file_stores_them(tmp_path: Path, options: dict[str, Any]) -> None:
    """A dictionary that has grown too large is given up within a column."""
    pixels = np.concatenate([PIXELS] * 40)
    table = pq.read_table(write_parquet(tmp_path / "b.parquet", list(pixels), LABELS * 40))
    pq.write_table(table, tmp_path / "a.parquet", **options)
    assert np.array_equal(read_images(tmp_path / "a.parquet", "any").images.numpy(), channels_first(pixels))


def test_an_image_of_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.data.decode.MAX_BYTES", 300)
    path = write_parquet(tmp_path / "a.parquet", [*rows()[:5], encoded(PIXELS[0]) + bytes(400), *rows()[6:]], LABELS)
    with pytest.raises(DataError, match=r"pictures/5\.png \(row 5\) .*it has [0-9,]+ bytes, more than 300"):
        read_images(path, "any")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_images_may_be_a_plain_column_of_bytes(tmp_path: Path, kind: Any) -> None:
    table = pa.table({"img": pa.array([encoded(image) for image in PIXELS], kind), "label": LABELS})
    pq.write_table(table, tmp_path / "a.parquet")
    assert np.array_equal(read_images(tmp_path / "a.parquet", "any").images.numpy(), channels_first(PIXELS))


def test_splits_and_row_groups_without_rows_change_nothing(tmp_path: Path) -> None:
    full = pq.read_table(write_parquet(tmp_path / "full.parquet", rows(), LABELS, features=None))
    (tmp_path / "set").mkdir()
    with pq.ParquetWriter(tmp_path / "set" / "train.parquet", full.schema) as writer:
        for table in (full.slice(0, 0), full, full.slice(0, 0)):
            writer.write_table(table)
    pq.write_table(full.slice(0, 0), tmp_path / "set" / "test.parquet")
    images = read_images(tmp_path / "set", "train")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))
    assert images.class_names == ("0", "1", "2")


def test_a_missing_split_names_what_is_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "train.parquet", rows(), LABELS)
    with pytest.raises(DataError, match=r"has no test split; it has: train \(a single file or"):
        read_images(tmp_path / "set", "test")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# What an image is called begins with a byte that no text has.
@example(changes=[(93790, 128)], footer=False, cut=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6),
    footer=st.booleans(),
    cut=st.none() | st.integers(0, 4000),
)
def test_files_with_changed_bytes_are_read_or_refused(
    tmp_path: Path, changes: list[tuple[int, int]], footer: bool, cut: int | None
) -> None:
    path = tmp_path / "a.parquet"
    content = bytearray(write_parquet(path, rows(), LABELS).read_bytes())
    length = int.from_bytes(content[-8:-4], "little") + 8 if footer else len(content)
    for place, value in changes:
        content[len(content) - 1 - place % length] = value
    path.write_bytes(b"PAR1" + content[4:cut])
    with contextlib.suppress(DataError):
        assert len(read_images(path, "any").shape) == 3
