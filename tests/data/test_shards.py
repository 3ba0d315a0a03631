"""Files that are read a few rows at a time give what reading them at once gives, and are refused by name."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.generated import CLASS_FEATURES, encoded, random_pixels, write_parquet
from unbackdoor.data import ImageSet, read_images
from unbackdoor.data import shards as module
from unbackdoor.data.shards import Shard, Shards, declared_rows, too_many
from unbackdoor.errors import DataError, InputError

PIXELS = random_pixels(60)
LABELS = [row % 3 for row in range(60)]
SIZES = (25, 0, 35)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, one of them empty, and a test split."""
    start = 0
    for number, size in enumerate(SIZES):
        part = slice(start, start + size)
        write_parquet(tmp_path / "set" / f"train-{number}.parquet", list(PIXELS[part]), LABELS[part])
        start += size
    write_parquet(tmp_path / "set" / "test-0.parquet", list(PIXELS[:9]), LABELS[:9])
    return tmp_path / "set"


def joined(parts: list[ImageSet]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat([part.images for part in parts]), torch.cat([part.labels for part in parts])


def test_pieces_are_the_rows_that_are_read_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)
    shards, whole = Shards.of(folder), read_images(folder, "any")
    assert [(shard.name, shard.rows) for shard in shards.shards] == [
        (f"train-{number}.parquet", size) for number, size in enumerate(SIZES)
    ]
    pieces = [list(shards.pieces(shard, 3)) for shard in shards.shards]
    assert [[len(piece) for piece in one] for one in pieces] == [[7, 7, 7, 4], [], [7] * 5]
    images, labels = joined([piece for one in pieces for piece in one])
    assert torch.equal(images, whole.images)
    assert torch.equal(labels, whole.labels)
    assert (shards.class_names, shards.rows, shards.name) == (whole.class_names, 60, whole.name)
    assert declared_rows(folder) == 60


def test_no_more_than_a_piece_is_ever_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a file and its row groups are."""
    table = pa.concat_tables([pq.read_table(folder / "train-2.parquet")] * 40)
    pq.write_table(table, folder / "train-2.parquet", row_group_size=10**6)
    held: list[int] = []
    real = module.decode_images

    def noting(images: Any, count: int, source: str) -> torch.Tensor:
        held.append(count)
        return real(images, count, source)

    monkeypatch.setattr(module, "decode_images", noting)
    shards = Shards.of(folder)
    pieces = shards.pieces(shards.shards[2], 3)
    assert len(next(pieces)) == module.PIECE
    assert held == [module.PIECE], "nothing is read before it is asked for"
    assert sum(map(len, pieces)) == 35 * 40 - module.PIECE
    assert max(held) == module.PIECE


def test_rows_are_read_by_file_and_number(folder: Path) -> None:
    shards = Shards.of(folder)
    found = shards.at({"train-2.parquet": np.array([0, 11, 34]), "train-0.parquet": np.array([24])})
    assert torch.equal(found.images, read_images(folder, "any").images[[24, 25, 36, 59]])
    assert found.labels.tolist() == [LABELS[row] for row in (24, 25, 36, 59)]
    assert torch.equal(shards.first(3).images, found.images[:0].new_tensor(PIXELS[:1]).permute(0, 3, 1, 2))


def test_a_sample_takes_every_row_as_often_as_any_other(folder: Path) -> None:
    shards, whole = Shards.of(folder), read_images(folder, "any")
    row_of = {image.numpy().tobytes(): row for row, image in enumerate(whole.images.contiguous())}
    drawn = torch.zeros(60)
    for seed in range(60):
        sample = shards.sample(20, seed)
        rows = [row_of[image.numpy().tobytes()] for image in sample.images.contiguous()]
        assert rows == sorted(set(rows)), "each row once, in order"
        assert sample.labels.tolist() == [LABELS[row] for row in rows]
        drawn[rows] += 1
    assert drawn.sum() == 1200
    # A third of the draws, 20 of 60, give or take five standard deviations.
    assert 2 < float(drawn.min()) < float(drawn.max()) < 38
    assert torch.equal(shards.sample(20, 3).images, shards.sample(20, 3).images)
    assert torch.equal(shards.sample(60, 3).images, whole.images)


def test_row_groups_without_a_wanted_row_are_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    real = pq.ParquetFile.iter_batches

    def noting(self: pq.ParquetFile, *arguments: Any, **options: Any) -> Any:
        groups.extend(options["row_groups"])
        return real(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    Shards.of(folder).at({"train-2.parquet": np.array([3, 31])})
    assert groups == [0, 3]


def test_grey_pieces_of_coloured_data_get_their_channels(tmp_path: Path) -> None:
    grey = random_pixels(4, (6, 8))
    write_parquet(tmp_path / "a.parquet", [*grey, *PIXELS[:2]], [0, 1, 2, 0, 1, 2])
    shards = Shards.of(tmp_path)
    (piece,) = shards.pieces(shards.shards[0], 3)
    assert torch.equal(piece.images, read_images(tmp_path, "any").images)
    write_parquet(tmp_path / "a.parquet", list(grey), [0, 1, 2, 0])
    shards = Shards.of(tmp_path)
    (piece,) = shards.pieces(shards.shards[0], 3)
    assert piece.images.shape == (4, 3, 6, 8)
    assert torch.equal(piece.images[:, 2], torch.from_numpy(grey))


def test_classes_that_have_no_names_are_counted_over_all_files_and_splits(tmp_path: Path) -> None:
    for name, labels in (("train-0", [0, 1]), ("train-1", [3, 1]), ("test-0", [5, 0])):
        write_parquet(tmp_path / f"{name}.parquet", list(PIXELS[:2]), labels, features=None)
    assert Shards.of(tmp_path).class_names == tuple("012345") == read_images(tmp_path, "any").class_names


@pytest.mark.parametrize(("others", "goes"), [(1, False), (2, True)])
def test_the_highest_class_without_a_name_may_only_go_where_another_split_has_it(
    tmp_path: Path, others: int, goes: bool
) -> None:
    write_parquet(tmp_path / "train-0.parquet", list(PIXELS[:6]), LABELS[:6], features=None)
    write_parquet(tmp_path / "test-0.parquet", list(PIXELS[:2]), [0, others], features=None)
    shards = Shards.of(tmp_path)
    shards.check_kept([0, 0, 1])
    if goes:
        shards.check_kept([2, 2, 0])
    else:
        with pytest.raises(InputError, match="no image of class 2 is kept"):
            shards.check_kept([2, 2, 0])


def test_a_class_with_a_name_may_go(folder: Path) -> None:
    Shards.of(folder).check_kept([1] + [0] * (Shards.of(folder).classes - 1))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"PAR1 and no more"), "cannot read"),
        (lambda path: path.write_bytes(b""), "cannot read"),
        (lambda path: pq.write_table(pa.table({"text": ["a"]}), path), "no column that could hold the images"),
        (
            lambda path: write_parquet(
                path,
                list(PIXELS[:2]),
                [0, 1],
                features={**CLASS_FEATURES, "label": {"_type": "ClassLabel", "names": ["dog", "cat", "emu"]}},
            ),
            "other names of classes, than train-0.parquet",
        ),
        (
            lambda path: write_parquet(
                path,
                list(PIXELS[:2]),
                [0, 1],
                features={**CLASS_FEATURES, "label": {"_type": "ClassLabel", "num_classes": 10**12}},
            ),
            "declares 1000000000000 classes",
        ),
    ],
)
def test_files_that_do_not_belong_are_named_before_any_work(folder: Path, spoil: Any, words: str) -> None:
    spoil(folder / "train-2.parquet")
    with pytest.raises(DataError, match=words) as caught:
        Shards.of(folder)
    assert "train-2.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        ([PIXELS[0], b"broken", PIXELS[2]], [0, 1, 2], r"image pictures/1.png \(row 1\) of .*train-2.parquet"),
        ([PIXELS[0], {"bytes": None, "path": "/etc/passwd"}], [0, 1], "has no bytes"),
        ([PIXELS[0], random_pixels(1, (5, 8, 3))[0]], [0, 1], "not of one size"),
        ([PIXELS[0], PIXELS[1]], [0, None], "label is missing"),
        ([PIXELS[0], PIXELS[1]], [0, 7], "labels run from 0 to 7"),
        ([PIXELS[0], PIXELS[1]], [0, -1], "go down to -1"),
    ],
)
def test_rows_that_are_broken_are_named_with_their_file(
    folder: Path, images: list[Any], labels: list[int | None], words: str
) -> None:
    write_parquet(folder / "train-2.parquet", images, labels)
    shards = Shards.of(folder)
    with pytest.raises(DataError, match=words) as caught:
        list(shards.pieces(shards.shards[2], 3))
    assert "train-2.parquet" in str(caught.value)


def test_a_file_that_changes_after_it_was_looked_at_is_named(folder: Path) -> None:
    shards = Shards.of(folder)
    write_parquet(folder / "train-2.parquet", list(PIXELS[:4]), LABELS[:4])
    with pytest.raises(DataError, match=r"train-2\.parquet declares 35 images but holds 4"):
        list(shards.pieces(shards.shards[2], 3))
    fewer = Shard(name="train-2.parquet", path=folder / "train-2.parquet", rows=3)
    with pytest.raises(DataError, match=r"train-2\.parquet holds more than the 3 rows that it declares"):
        list(shards.pieces(fewer, 3))
    gone = Shard(name="train-9.parquet", path=folder / "train-9.parquet", rows=1)
    with pytest.raises(DataError, match=r"cannot read .*train-9\.parquet"):
        list(shards.pieces(gone, 3))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6),
    footer=st.booleans(),
    cut=st.none() | st.integers(0, 4000),
)
def test_files_with_changed_bytes_are_read_or_refused(
    folder: Path, changes: list[tuple[int, int]], footer: bool, cut: int | None
) -> None:
    path = folder / "train-1.parquet"
    content = bytearray(write_parquet(path, list(PIXELS[:24]), LABELS[:24]).read_bytes())
    length = int.from_bytes(content[-8:-4], "little") + 8 if footer else len(content)
    for place, value in changes:
        content[len(content) - 1 - place % length] = value
    path.write_bytes(b"PAR1" + content[4:cut])
    with contextlib.suppress(DataError):
        shards = Shards.of(folder)
        assert declared_rows(folder) == shards.rows
        assert len(shards.sample(10, 0)) == 10
        assert sum(map(len, shards.pieces(shards.shards[1], 3))) == shards.shards[1].rows


def test_what_is_no_folder_of_parquet_files_declares_no_rows(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.png").write_bytes(encoded(PIXELS[0]))
    one = write_parquet(tmp_path / "set" / "one.parquet", list(PIXELS[:3]), [0, 1, 2])
    assert [declared_rows(source) for source in ("digits", "owner/name", tmp_path / "empty", one)] == [0] * 4
    assert declared_rows(tmp_path / "set") == 3


def test_what_fills_too_much_memory_is_told_by_rows_and_the_size_of_the_first_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = Shards.of(folder).first(1).images.numel()
    assert not too_many(folder), "so few are held whatever their size"
    for fitting, many in ((59, True), (60, False)):
        monkeypatch.setattr(module, "HELD", fitting * size)
        monkeypatch.setattr(module, "FEW", 10)
        assert Shards.of(folder).fitting() == fitting
        assert too_many(folder) is many
    assert not too_many("digits")


def test_files_without_any_rows_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [], [])
    with pytest.raises(DataError, match="holds no images"):
        Shards.of(tmp_path)


def test_an_image_that_many_rows_refer_to_is_not_held_for_all_of_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may have a large image once; only one row's bytes are taken out of it at a time."""
    taken: list[int] = []

    def decode(images: Any, count: int, source: str) -> torch.Tensor:
        assert not isinstance(images, list)
        taken.append(sum(1 for _ in images))
        return torch.zeros(count, 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr(module, "decode_images", decode)
    monkeypatch.setattr(module, "PIECE", 10)
    shards = Shards.of(folder)
    assert sum(len(piece) for piece in shards.pieces(shards.shards[2], 3)) == 35
    assert taken == [10, 10, 10, 5]
