"""What is left of a data set is written in the layout that it came in, whole or not at all."""

from __future__ import annotations

from pathlib import Path

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


def test_other_sources_become_a_parquet_file(tmp_path: Path, tiny_images: ImageSet) -> None:
    source = tmp_path / "data.npz"
    np.savez(source, images=tiny_images.images.permute(0, 2, 3, 1).numpy(), labels=tiny_images.labels.numpy())
    images = read_images(source, "any")
    kept = kept_of(images)
    write_kept(source, images, kept, tmp_path / "cleaned")
    assert files(tmp_path / "cleaned") == ["data/train-00000-of-00001.parquet"]
    back = read_images(tmp_path / "cleaned", "any")
    assert torch.equal(back.images, images.images[kept])


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
