"""What is left of a data set is written in the layout that it came in, whole or not at all."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from unbackdoor.data import ImageSet, read_images
from unbackdoor.data.cleaned import check_target, write_kept
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.errors import DataError, InputError, OutputError


def kept_of(images: ImageSet) -> torch.Tensor:
    return torch.rand(len(images), generator=torch.Generator().manual_seed(0)) < 0.7


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def image_folder(root: Path, images: ImageSet, splits: tuple[str, ...]) -> None:
    for split in splits:
        for row, label in enumerate(images.labels.tolist()):
            path = root / split / images.class_names[label] / f"picture {row:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[row].permute(1, 2, 0).numpy()).save(path)


def test_parquet_files_keep_names_columns_and_the_other_splits(tmp_path: Path, tiny_images: ImageSet) -> None:
    from pyarrow import parquet

    source, out = tmp_path / "data", tmp_path / "cleaned"
    halves = [tiny_images.subset(torch.arange(start, start + 60)) for start in (0, 60)]
    for number, half in enumerate(halves):
        odd = torch.arange(60) % 2 == number
        write_parquet(source / f"train-0000{number}-of-00002.parquet", half, {"odd": odd})
    write_parquet(source / "test-00000-of-00001.parquet", tiny_images, {"odd": torch.zeros(120, dtype=torch.bool)})
    images = read_images(source, "any")
    kept = kept_of(images)
    write_kept(source, images, kept, out)
    assert files(out) == files(source)
    back = read_images(out, "train")
    assert torch.equal(back.images, images.images[kept])
    assert torch.equal(back.labels, images.labels[kept])
    assert back.class_names == images.class_names
    odd = [parquet.read_table(path)["odd"].to_pylist() for path in sorted(out.glob("train*"))]
    wanted = torch.cat([torch.arange(60) % 2 == 0, torch.arange(60) % 2 == 1])[kept]
    assert [value for part in odd for value in part] == wanted.tolist()
    test = "test-00000-of-00001.parquet"
    assert (out / test).read_bytes() == (source / test).read_bytes()


def test_a_parquet_file_by_itself_stays_one(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "mine.parquet"
    write_parquet(source, tiny_images, {})
    images = read_images(source, "any")
    kept = kept_of(images)
    write_kept(source, images, kept, tmp_path / "cleaned")
    assert files(tmp_path / "cleaned") == ["mine.parquet"]
    assert torch.equal(read_images(tmp_path / "cleaned", "any").images, images.images[kept])


@pytest.mark.parametrize("splits", [("",), ("train", "test")])
def test_image_folders_keep_their_files_as_they_are(
    tmp_path: Path, tiny_images: ImageSet, splits: tuple[str, ...]
) -> None:
    source, out = tmp_path / "data", tmp_path / "cleaned"
    image_folder(source, tiny_images, splits)
    images = read_images(source, "any")
    kept = kept_of(images)
    write_kept(source, images, kept, out)
    back = read_images(out, "any")
    assert torch.equal(back.images, images.images[kept])
    assert torch.equal(back.labels, images.labels[kept])
    assert len(files(out)) == int(kept.sum()) + 120 * (len(splits) - 1)
    for name in files(out):
        assert (out / name).read_bytes() == (source / name).read_bytes()


def pixels_of(images: ImageSet) -> np.ndarray:
    return images.images.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_undivided_archive_stays_one_with_its_arrays(tmp_path: Path, tiny_images: ImageSet, save: Any) -> None:
    source, out = tmp_path / "mine.npz", tmp_path / "cleaned"
    # A column of labels, an alpha channel, an array of the rows and one of something else.
    alpha = np.concatenate([pixels_of(tiny_images), np.full((120, *tiny_images.shape[1:], 1), 7, np.uint8)], 3)
    labels = tiny_images.labels.numpy()[:, None].astype(np.uint16)
    names = np.array(tiny_images.class_names)
    save(source, images=alpha, labels=labels, class_names=names, ids=np.arange(120), about=np.arange(5))
    images = read_images(source, "any")
    kept = kept_of(images)
    named = write_kept(source, images, kept, out)
    assert named == out / "mine.npz"
    assert files(out) == ["mine.npz"]
    back = read_images(named, "any")
    assert torch.equal(back.images, images.images[kept])
    assert back.class_names == tiny_images.class_names
    with np.load(named) as found:
        assert set(found) == {"images", "labels", "class_names", "ids", "about"}
        assert np.array_equal(found["images"], alpha[kept.numpy()])
        assert np.array_equal(found["labels"], labels[kept.numpy()])
        assert found["labels"].dtype == np.uint16
        assert found["ids"].tolist() == np.arange(120)[kept.numpy()].tolist()
        assert found["about"].tolist() == list(range(5))
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(named) as written:
        assert [one.compress_type for one in written.infolist()] == [one.compress_type for one in given.infolist()]


def test_an_archive_with_splits_keeps_the_others_whole(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "mine.npz"
    pixels, labels = pixels_of(tiny_images), tiny_images.labels.numpy()
    more = {"ids_train": np.arange(120), "ids_test": np.arange(120), "ids": np.arange(120)}
    np.savez(source, x_train=pixels, y_train=labels, x_test=pixels[::-1], y_test=labels[::-1], **more)
    images = read_images(source, "any")
    kept = kept_of(images)
    named = write_kept(source, images, kept, tmp_path / "cleaned")
    for split, expected in (("train", images.images[kept]), ("test", images.images.flip(0))):
        assert torch.equal(read_images(named, split).images, expected)
    with np.load(named) as found:
        rows = {name: found[name].tolist() for name in more}
    everything = list(range(120))
    assert rows == {"ids_train": torch.arange(120)[kept].tolist(), "ids_test": everything, "ids": everything}


def test_pickles_in_an_archive_are_neither_opened_nor_handed_on(
    tmp_path: Path, tiny_images: ImageSet, unpickled: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "mine.npz"
    harmful = np.array([{"any": "thing"}] * 120, dtype=object)
    np.savez(source, images=pixels_of(tiny_images), labels=tiny_images.labels.numpy(), notes=harmful)
    images = read_images(source, "any")
    named = write_kept(source, images, kept_of(images), tmp_path / "cleaned")
    with zipfile.ZipFile(named) as written:
        assert written.namelist() == ["images.npy", "labels.npy"]
    assert "notes of " in caplog.text
    assert unpickled == []


def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, named: bool = True, **splits: ImageSet) -> None:
    """Let the hub answer with these splits, as PNG with a column more; `named`: with names of the classes."""
    parts = {}
    for name, images in splits.items():
        write_parquet(tmp_path / f"{name}.parquet", images, {"odd": torch.arange(len(images)) % 2 == 1})
        part = datasets.Dataset.from_parquet(str(tmp_path / f"{name}.parquet"), cache_dir=str(tmp_path / "hub"))
        parts[name] = part if named else part.cast_column("label", datasets.Value("int32"))
    local = datasets.load_dataset

    def load_dataset(source: str, **options: Any) -> Any:
        return datasets.DatasetDict(parts) if source.startswith("owner/") else local(source, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_data_of_the_hub_become_a_file_a_split_with_all_columns(
    tmp_path: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet

    out = tmp_path / "cleaned"
    # More rows than are in memory at a time.
    many = tiny_images.subset(torch.arange(360) % 120)
    hub(monkeypatch, tmp_path, train=many, test=tiny_images)
    images = read_images("owner/set", "any")
    kept = kept_of(images)
    assert write_kept("owner/set", images, kept, out) == out
    assert files(out) == ["data/test-00000-of-00001.parquet", "data/train-00000-of-00001.parquet"]
    back = read_images(out, "train")
    assert torch.equal(back.images, images.images[kept])
    assert torch.equal(back.labels, images.labels[kept])
    assert back.class_names == images.class_names
    assert torch.equal(read_images(out, "test").images, tiny_images.images)
    table = parquet.read_table(out / "data" / "train-00000-of-00001.parquet")
    assert table["odd"].to_pylist() == (torch.arange(360) % 2 == 1)[kept].tolist()
    # As encoded as they were.
    before = parquet.read_table(tmp_path / "train.parquet")["image"].to_pylist()
    assert table["image"].to_pylist() == [cell for cell, keep in zip(before, kept.tolist()) if keep]


def test_an_undivided_set_of_the_hub_stays_undivided(
    tmp_path: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(monkeypatch, tmp_path, train=tiny_images)
    images = read_images("owner/training-signs", "any")
    kept = kept_of(images)
    out = write_kept("owner/training-signs", images, kept, tmp_path / "cleaned")
    assert torch.equal(read_images(out, "any").images, images.images[kept])
    assert sum(len(read_images(out, split)) for split in ("train", "test")) == int(kept.sum())


def test_the_digits_become_one_undivided_parquet_file(tmp_path: Path) -> None:
    images = read_images("digits", "any")
    kept = kept_of(images)
    out = write_kept("digits", images, kept, tmp_path / "cleaned")
    assert len(files(out)) == 1
    assert torch.equal(read_images(out, "any").images, images.images[kept])
    assert sum(len(read_images(out, split)) for split in ("train", "test")) == int(kept.sum())


@pytest.mark.parametrize("kind", ["archive", "hub", "parquet"])
def test_the_highest_class_without_a_name_does_not_vanish(
    kind: str, tmp_path: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    source: str | Path = "owner/set"
    highest = tiny_images.classes - 1
    if kind == "hub":
        hub(monkeypatch, tmp_path, named=False, train=tiny_images)
    elif kind == "parquet":
        source = tmp_path / "mine"
        write_parquet(source / "train.parquet", tiny_images, {})
        table = parquet.read_table(source / "train.parquet")
        schema = table.schema.set(1, pyarrow.field("label", pyarrow.int64())).remove_metadata()
        parquet.write_table(table.cast(schema), source / "train.parquet")
    else:
        source = tmp_path / "mine.npz"
        np.savez(source, images=pixels_of(tiny_images), labels=tiny_images.labels.numpy())
    images = read_images(source, "any")
    with pytest.raises(InputError, match=f"no image of class {highest} is kept"):
        write_kept(source, images, images.labels != highest, tmp_path / "cleaned")
    assert not (tmp_path / "cleaned").exists()
    # A lower class may go: the others keep their numbers.
    named = write_kept(source, images, images.labels != 0, tmp_path / "cleaned")
    assert read_images(named, "any").classes == images.classes


def test_an_archive_that_changed_meanwhile_leaves_nothing(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "mine.npz"
    np.savez(source, images=pixels_of(tiny_images), labels=tiny_images.labels.numpy())
    images = read_images(source, "any")
    np.savez(source, images=pixels_of(tiny_images)[:90], labels=tiny_images.labels.numpy()[:90])
    with pytest.raises(DataError, match="holds 90 images now and held 120"):
        write_kept(source, images, kept_of(images), tmp_path / "cleaned")
    assert not list(tmp_path.glob("*cleaned*"))


def test_folders_that_are_taken_or_lie_within_the_data_are_refused(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "data"
    image_folder(source, tiny_images, ("",))
    images = read_images(source, "any")
    everything = torch.ones(120, dtype=torch.bool)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="taken is there and not empty"):
        write_kept(source, images, everything, taken)
    with pytest.raises(OutputError, match="lies within the data themselves"):
        check_target(source / "cleaned", source)
    with pytest.raises(InputError, match="no rows are left"):
        write_kept(source, images, ~everything, tmp_path / "cleaned")
    assert files(taken) == ["mine.txt"]
    assert not (tmp_path / "cleaned").exists()


def test_a_class_folder_does_not_vanish_without_a_word(tmp_path: Path, tiny_images: ImageSet) -> None:
    """Without it the classes after it would have other numbers."""
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    image_folder(alone, tiny_images, ("",))
    image_folder(beside, tiny_images, ("train", "test"))
    images = read_images(alone, "any")
    kept = images.labels != 1
    with pytest.raises(InputError, match=f"no image of class {images.class_names[1]} is kept"):
        write_kept(alone, images, kept, tmp_path / "cleaned")
    assert not (tmp_path / "cleaned").exists()
    write_kept(beside, read_images(beside, "any"), kept, tmp_path / "cleaned")
    assert read_images(tmp_path / "cleaned", "train").class_names == images.class_names


def test_data_that_changed_meanwhile_leave_nothing_half_written(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "data"
    image_folder(source, tiny_images, ("",))
    images = read_images(source, "any")
    next(source.rglob("*.png")).unlink()
    with pytest.raises(DataError, match="holds 119 images now and held 120 when it was read"):
        write_kept(source, images, torch.ones(120, dtype=torch.bool), tmp_path / "cleaned")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["data"]


def test_an_empty_folder_is_filled(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "mine.parquet"
    write_parquet(source, tiny_images, {})
    (tmp_path / "cleaned").mkdir()
    write_kept(source, read_images(source, "any"), torch.ones(120, dtype=torch.bool), tmp_path / "cleaned")
    assert files(tmp_path / "cleaned") == ["mine.parquet"]


def test_a_value_that_a_file_has_once_is_not_copied_for_every_row(
    tmp_path: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column that nobody looks at refers 120 times to one text of 1 MB, and lists of such texts."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    from unbackdoor.data import limits, parquet

    write_parquet(tmp_path / "plain" / "train-00000-of-00001.parquet", tiny_images, {})
    table = pq.read_table(tmp_path / "plain" / "train-00000-of-00001.parquet")
    table = table.append_column("note", pa.array(["x" * 2**20] * 120)).append_column(
        "tags", pa.array([["y" * 2**18, None]] * 119 + [None])
    )
    source = tmp_path / "data" / "train-00000-of-00001.parquet"
    source.parent.mkdir()
    pq.write_table(table, source, dictionary_pagesize_limit=2**26, compression="zstd")
    assert source.stat().st_size < 200_000
    monkeypatch.setattr(parquet, "MOST_AT_ONCE", 2**23)
    images = read_images(tmp_path / "data", "any")
    kept = kept_of(images)
    parts: list[int] = []
    cut = parquet._in_parts

    def seen(batch: Any) -> Any:
        for part, size in cut(batch):
            assert size == parquet.unpacked_size(part)
            parts.append(size)
            yield part, size

    monkeypatch.setattr(parquet, "_in_parts", seen)
    write_kept(tmp_path / "data", images, kept, tmp_path / "cleaned")
    back = pq.read_table(tmp_path / "cleaned" / "train-00000-of-00001.parquet")
    assert back.schema.equals(table.schema)
    assert back.equals(table.filter(pa.array(kept.tolist())))
    assert len(parts) > 8
    assert max(parts) <= 2**23
    assert sum(parts) > 70 * 2**20
    monkeypatch.setattr(limits, "physical_memory", lambda: 2**26)
    with pytest.raises(DataError, match="when it is unpacked"):
        write_kept(tmp_path / "data", images, kept, tmp_path / "again")
    assert not (tmp_path / "again").exists() or not files(tmp_path / "again")


def test_a_file_that_is_as_large_as_what_it_holds_is_gone_through_whatever_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    from pyarrow import parquet as pq

    from unbackdoor.data import limits
    from unbackdoor.data.parquet import copy_rows

    draws = random.Random(0)
    pq.write_table(pa.table({"image": [draws.randbytes(2**16) for _ in range(64)]}), tmp_path / "large.parquet")
    monkeypatch.setattr(limits, "physical_memory", lambda: 2**21)
    kept = torch.ones(64, dtype=torch.bool)
    assert copy_rows(tmp_path / "large.parquet", tmp_path / "copy.parquet", kept, "large") == 64
    assert pq.read_table(tmp_path / "copy.parquet").equals(pq.read_table(tmp_path / "large.parquet"))


def test_a_full_disk_is_not_the_fault_of_the_data(
    tmp_path: Path, tiny_images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyarrow import parquet as pq

    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", tiny_images, {})
    images = read_images(tmp_path / "data", "any")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_batch", full)
    with pytest.raises(OutputError, match="No space left on device"):
        write_kept(tmp_path / "data", images, kept_of(images), tmp_path / "cleaned")
