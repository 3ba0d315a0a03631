from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from tests.data.generated import encoded, random_pixels, write_folder, write_parquet
from unbackdoor.data import ImageSet, cache, image_folder, read_images
from unbackdoor.data.image_folder import ImageFolder
from unbackdoor.errors import OutputError

NAMES = ("cat", "dog", "emu")
LABELS = [row % 3 for row in range(24)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", random_pixels(24), LABELS, NAMES)


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that images are decoded."""
    done: list[str] = []
    original = image_folder.decode_images

    def decode_images(images: Any, count: int, name: str) -> Any:
        done.append(name)
        return original(images, count, name)

    monkeypatch.setattr(image_folder, "decode_images", decode_images)
    return done


def kept_file(tmp_path: Path) -> Path:
    (file,) = (tmp_path / "cache").iterdir()
    return file


def test_the_second_read_decodes_nothing_and_gives_the_same(
    source: Path, decodings: list[str], unpickled: list[str]
) -> None:
    first, second = read_images(source, "any"), read_images(source, "any")
    assert len(decodings) == 1
    assert second.digest() == first.digest()
    assert second.name == first.name == "pictures/any"
    assert second.images.is_contiguous(memory_format=torch.channels_last)
    assert unpickled == []


def test_each_split_is_kept_by_itself(source: Path, decodings: list[str]) -> None:
    first = [read_images(source, split).digest() for split in ("train", "test", "any")]
    assert len(decodings) == 3
    assert [read_images(source, split).digest() for split in ("train", "test", "any")] == first
    assert len(set(first)) == 3
    assert len(decodings) == 3


def test_a_copy_of_the_source_elsewhere_is_the_same_source(tmp_path: Path, source: Path, decodings: list[str]) -> None:
    read_images(source, "any")
    source.rename(tmp_path / "moved")
    assert read_images(tmp_path / "moved", "any").name == "moved/any"
    assert len(decodings) == 1


@pytest.mark.parametrize("change", ["pixels", "new file", "class renamed", "file moved to another class"])
def test_a_changed_source_is_decoded_anew(source: Path, decodings: list[str], change: str) -> None:
    before = read_images(source, "any")
    file = source / "cat" / "000.png"
    if change == "pixels":
        file.write_bytes(encoded(random_pixels(1, seed=9)[0]))
    elif change == "new file":
        (source / "cat" / "new.png").write_bytes(file.read_bytes())
    elif change == "class renamed":
        (source / "cat").rename(source / "ant")
    else:
        file.rename(source / "dog" / "000.png")
    assert read_images(source, "any").digest() != before.digest()
    assert len(decodings) == 2


def test_a_new_version_of_the_format_is_decoded_anew(
    source: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images(source, "any")
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    read_images(source, "any")
    assert len(decodings) == 2


def rewritten(file: Path, **changes: Any) -> None:
    """Write a kept file again, well-formed and with its old digest, but for `changes`."""
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
        metadata = dict(stored.metadata())
    for name, value in changes.items():
        (metadata if isinstance(value, str) else tensors)[name] = value
    save_file({name: tensor for name, tensor in tensors.items() if tensor.numel()}, file, metadata=metadata)


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how.startswith("byte"):
        content[int(how.split()[1])] ^= 0x40
        file.write_bytes(content)
    elif how.startswith("cut"):
        file.write_bytes(content[: int(how.split()[1])])
    elif how == "wrong shape":
        rewritten(file, images=torch.zeros(24, 8, 6, 3, dtype=torch.uint8))
    elif how == "same bytes in another shape":
        with safe_open(file, framework="pt") as stored:
            images = stored.get_tensor("images").clone()
        rewritten(file, images=images.view(24, 8, 6, 3))
    elif how == "wrong dtype":
        rewritten(file, images=torch.zeros(24, 6, 8, 3, dtype=torch.int8))
    elif how == "three dimensions":
        rewritten(file, images=torch.zeros(24, 6, 8, dtype=torch.uint8))
    elif how == "other labels":
        rewritten(file, labels=torch.arange(24) % 2)
    elif how == "other class names":
        rewritten(file, class_names=json.dumps(["dog", "cat", "emu"]))
    elif how == "class names that are no list":
        rewritten(file, class_names='"cat"')
    elif how == "class names that are no JSON":
        rewritten(file, class_names="cat")
    elif how == "no labels":
        rewritten(file, labels=torch.zeros(0, dtype=torch.int64))
    elif how == "a pickle":
        torch.save({"images": torch.zeros(3)}, file)
    else:
        raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    [
        "byte 0",
        "byte 7",
        "byte 20",
        "byte 100",
        "byte 600",
        "byte 2000",
        "byte -1",
        "cut 0",
        "cut 5",
        "cut 300",
        "cut 2000",
        "wrong shape",
        "same bytes in another shape",
        "wrong dtype",
        "three dimensions",
        "other labels",
        "other class names",
        "class names that are no list",
        "class names that are no JSON",
        "no labels",
        "a pickle",
    ],
)
def test_a_damaged_file_is_replaced_and_never_believed(
    tmp_path: Path, source: Path, decodings: list[str], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = read_images(source, "any").digest()
    damage(kept_file(tmp_path), how)
    with caplog.at_level(logging.WARNING):
        assert read_images(source, "any").digest() == good
    assert "are damaged (" in caplog.text
    assert len(decodings) == 2
    # It was mended on the way.
    assert read_images(source, "any").digest() == good
    assert len(decodings) == 2


def test_a_file_under_the_name_of_another_source_is_not_believed(
    tmp_path: Path, source: Path, decodings: list[str]
) -> None:
    other = write_folder(tmp_path / "other", random_pixels(24, seed=7), LABELS, NAMES)
    read_images(source, "any")
    content = kept_file(tmp_path).read_bytes()
    kept_file(tmp_path).unlink()
    right = read_images(other, "any").digest()
    kept_file(tmp_path).write_bytes(content)
    assert read_images(other, "any").digest() == right
    assert len(decodings) == 3


def test_a_digest_that_fits_does_not_excuse_labels_out_of_range(
    tmp_path: Path, source: Path, decodings: list[str]
) -> None:
    good = read_images(source, "any").digest()
    file = kept_file(tmp_path)
    key = file.stem.removeprefix("images-")
    images = torch.zeros(24, 6, 8, 3, dtype=torch.uint8)
    labels = torch.arange(24) % 4
    metadata = {
        "class_names": json.dumps(list(NAMES)),
        "digest": cache._digest(key, images, labels, NAMES),
    }
    save_file({"images": images, "labels": labels}, file, metadata=metadata)
    assert read_images(source, "any").digest() == good
    assert len(decodings) == 2


def test_a_cache_that_cannot_be_written_is_a_warning_only(
    tmp_path: Path, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with caplog.at_level(logging.WARNING):
        images = read_images(source, "any", cache=tmp_path / "file" / "cache")
    assert len(images) == 24
    assert "cannot keep the decoded images of pictures/any" in caplog.text
    assert (tmp_path / "file").read_text() == "not a folder"


def test_files_that_change_while_they_are_read_are_not_kept(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ImageFolder.read

    def read(self: ImageFolder, split: str | None) -> Any:
        images = original(self, split)
        (source / "cat" / "000.png").write_bytes(encoded(random_pixels(1, seed=9)[0]))
        return images

    monkeypatch.setattr(ImageFolder, "read", read)
    read_images(source, "any")
    assert not (tmp_path / "cache").exists()


def test_the_folder_is_chosen_by_argument_then_environment_then_convention(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_images(source, "any", cache=tmp_path / "named")
    assert len(list((tmp_path / "named").iterdir())) == 1
    assert not (tmp_path / "cache").exists()
    assert cache.default_folder() == tmp_path / "cache"
    monkeypatch.delenv("UNBACKDOOR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache.default_folder() == Path("/xdg/unbackdoor")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache.default_folder() == Path("/home/somebody/.cache/unbackdoor")
    monkeypatch.setenv("UNBACKDOOR_CACHE", "~no-such-user/cache")
    with pytest.raises(OutputError, match="set UNBACKDOOR_CACHE"):
        cache.default_folder()


def test_the_cache_holds_neither_paths_nor_unfinished_files(tmp_path: Path, source: Path) -> None:
    read_images(source, "any")
    file = kept_file(tmp_path)
    assert file.suffix == ".safetensors"
    assert str(tmp_path).encode() not in file.read_bytes()


def test_a_kept_set_is_read_without_importing_datasets(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", list(random_pixels(24)), LABELS)
    read_images(path, "train")
    program = (
        "import sys; from unbackdoor.data import read_images; read_images(sys.argv[1], 'train');"
        "print([name for name in ('datasets', 'pyarrow', 'sklearn', 'huggingface_hub') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6),
    header=st.booleans(),
    cut=st.none() | st.integers(0, 4000),
)
def test_kept_images_with_changed_bytes_are_right_or_decoded_again(
    tmp_path: Path, changes: list[tuple[int, int]], header: bool, cut: int | None
) -> None:
    pixels = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    images = ImageSet(images=pixels, labels=torch.tensor([0, 1]), class_names=("a", "b"))
    cache.store(tmp_path / "cache", "key", images)
    path = kept_file(tmp_path)
    content = bytearray(path.read_bytes())
    end = 8 + int.from_bytes(content[:8], "little") if header else len(content)
    for place, value in changes:
        content[place % end] = value
    path.write_bytes(content[:cut])
    found = cache.load(tmp_path / "cache", "key", "x")
    assert found is None or found.digest() == images.digest()
