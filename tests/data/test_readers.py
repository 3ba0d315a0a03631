from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data.generated import encoded, random_pixels, write_folder, write_parquet
from unbackdoor.data import ImageSet, read_images
from unbackdoor.errors import DataError, InputError

LABELS = [row % 3 for row in range(24)]
NAMES = ("cat", "dog", "emu")


def test_every_local_layout_of_one_data_set_gives_the_same_images_and_parts(
    tmp_path: Path, connections: list[Any]
) -> None:
    pixels = random_pixels(24)
    sources = [
        write_folder(tmp_path / "folder", pixels, LABELS, NAMES),
        write_parquet(tmp_path / "table.parquet", list(pixels), LABELS),
        tmp_path / "arrays.npz",
    ]
    np.savez(sources[2], images=pixels, labels=np.array(LABELS), class_names=np.array(NAMES))

    def members(images: ImageSet) -> list[tuple[int, bytes]]:
        return sorted((int(label), image.numpy().tobytes()) for image, label in zip(images.images, images.labels))

    for split, size in (("any", 24), ("train", 18), ("test", 6)):
        found = [read_images(source, split) for source in sources]
        assert [len(images) for images in found] == [size] * 3
        assert members(found[0]) == members(found[1]) == members(found[2])
        assert {images.class_names for images in found} == {NAMES}
    assert connections == []


def test_an_unknown_split_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown split 'dev'; choose one of train, test, any"):
        read_images(tmp_path, "dev")


@pytest.mark.parametrize(
    "source",
    [
        "./cifar10",
        "../cifar10",
        "/no/such/folder",
        "~/no such",
        "cifar10.parquet",
        "sets/cifar10.npz",
        "a/b/c",
        "x\x00y",
        "",
        "a b",
        "cat.PNG",
        "~nobody-of-that-name/x",
        "a" * 5000 + "/b/c",
    ],
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(
    source: str, connections: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"no such file or folder|cannot open|holds neither"):
        read_images(source, "train")
    with pytest.raises(DataError):
        read_images(Path("cifar10"), "train")
    assert connections == []


def test_a_home_folder_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "pictures", random_pixels(24), LABELS, NAMES)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(read_images("~/pictures", "any")) == 24


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is neither a parquet file nor a NumPy .npz archive"),
        (b"a,b\n1,2\n", "is neither a parquet file nor a NumPy .npz archive"),
        (encoded(random_pixels(1)[0]), "is neither a parquet file nor a NumPy .npz archive"),
        (pickle.dumps({"data": 1}), "is a pickle, which can run code and is never opened"),
        (b"\x93NUMPY\x01\x00", "is one array without labels"),
    ],
)
def test_files_of_other_kinds_are_refused_by_their_content(
    tmp_path: Path, content: bytes, sentence: str, unpickled: list[str]
) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        read_images(path, "any")
    assert unpickled == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_is_refused_and_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        read_images(tmp_path / "pipe.parquet", "any")


REAL = {
    "cifar10": ("test", 10_000, (3, 32, 32), 10, "airplane"),
    "mnist": ("test", 3_000, (1, 28, 28), 10, "0"),
    "tiny_imagenet": ("validation", 2_000, (3, 64, 64), 200, "n01443537"),
    "gtsrb": ("test", 12_630, (3, 32, 32), 43, "speed limit 20"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_data_sets_have_their_known_sizes(name: str, shared_data: Path, connections: list[Any]) -> None:
    split, size, shape, classes, first = REAL[name]
    images = read_images(shared_data / name, "test")
    assert (len(images), images.shape, images.classes, images.class_names[0]) == (size, shape, classes, first)
    assert images.name == f"{name}/{split}"
    assert (images.class_counts() > 0).all()
    assert images.images.is_contiguous(memory_format=torch.channels_last)
    assert connections == []
    if name == "cifar10":
        assert images.class_counts().tolist() == [1000] * 10
        # The published mean of CIFAR-10's channels.
        mean = images.images.float().mean((0, 2, 3)) / 255
        assert torch.allclose(mean, torch.tensor([0.494, 0.485, 0.450]), atol=2e-3)
        start = time.process_time()
        assert torch.equal(read_images(shared_data / name, "test").images, images.images)
        assert time.process_time() - start < 0.5
