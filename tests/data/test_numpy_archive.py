from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.generated import channels_first, random_pixels
from unbackdoor.data import ImageSet, read_images
from unbackdoor.data.numpy_archive import NumpyArchive
from unbackdoor.errors import DataError

PIXELS = random_pixels(24)
LABELS = np.arange(24) % 3


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def raw_npz(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def test_the_tripwire_notices_numpy_unpickling(tmp_path: Path, unpickled: list[str]) -> None:
    path = npz(tmp_path / "set.npz", images=np.array([{"any": "thing"}], dtype=object))
    with np.load(path, allow_pickle=True) as archive, pytest.raises(AssertionError):
        archive["images"]
    assert unpickled == ["load"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_and_labels_come_back_exactly(tmp_path: Path, save: Any, unpickled: list[str]) -> None:
    save(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    images = read_images(tmp_path / "set.npz", "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))
    assert np.array_equal(images.labels.numpy(), LABELS)
    assert images.class_names == ("0", "1", "2")
    assert images.name == "set.npz/any"
    assert images.images.is_contiguous(memory_format=torch.channels_last)
    assert unpickled == []


@pytest.mark.parametrize(
    "stored",
    [PIXELS, channels_first(PIXELS), np.asfortranarray(PIXELS), np.concatenate([PIXELS, PIXELS[..., :1]], 3)],
    ids=["channels last", "channels first", "fortran order", "with alpha"],
)
def test_every_layout_of_colour_images_gives_the_same(tmp_path: Path, stored: np.ndarray) -> None:
    images = read_images(npz(tmp_path / "set.npz", images=stored, labels=LABELS), "any")
    assert np.array_equal(images.images.numpy(), channels_first(PIXELS))


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1), (1, 6, 8)])
def test_every_layout_of_grey_images_gives_one_channel(tmp_path: Path, shape: tuple[int, ...]) -> None:
    grey = PIXELS[..., 0]
    path = npz(tmp_path / "set.npz", images=grey.reshape(24, *shape), labels=LABELS)
    assert np.array_equal(read_images(path, "any").images.numpy(), grey[:, None])


def test_keras_names_are_splits(tmp_path: Path) -> None:
    path = npz(
        tmp_path / "keras.npz",
        x_train=PIXELS[:16],
        y_train=LABELS[:16, None].astype(np.uint8),
        x_test=PIXELS[16:19],
        y_test=np.array([[0], [1], [0]]),
    )
    train, test = read_images(path, "train"), read_images(path, "test")
    assert np.array_equal(train.images.numpy(), channels_first(PIXELS[:16]))
    assert np.array_equal(train.labels.numpy(), LABELS[:16])
    assert np.array_equal(test.images.numpy(), channels_first(PIXELS[16:19]))
    assert test.labels.tolist() == [0, 1, 0]
    # The test images lack class 2, which is a class all the same.
    assert test.class_names == train.class_names == ("0", "1", "2")
    assert torch.equal(read_images(path, "any").images, train.images)
    assert (train.name, test.name) == ("keras.npz/train", "keras.npz/test")


@pytest.mark.parametrize("kind", ["U8", "S8"])
def test_class_names_are_read(tmp_path: Path, kind: str) -> None:
    names = np.array(["cat", "dog", "emu"], kind)
    images = read_images(npz(tmp_path / "set.npz", images=PIXELS, labels=LABELS, class_names=names), "any")
    assert images.class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (header((10**12,), "<U0"), "class_names of .* are 1,000,000,000,000 texts of 0 bytes; at most 65,536"),
        (header((3,), "<U0"), "texts of 0 bytes"),
        (npy(np.array(["a"] * 65_537)), "are 65,537 texts"),
        (npy(np.array(["a" * 257, "b", "c"])), "are 3 texts of 1028 bytes; at most 65,536 of 1 to 1024"),
        (header((3,), "<U1") + (0x110000).to_bytes(4, "little") * 3, "cannot read .*; fetch or write it anew"),
        (npy(np.zeros((), "<U4")), "must be a list of texts"),
    ],
)
def test_class_names_out_of_range_are_refused(tmp_path: Path, names: bytes, sentence: str) -> None:
    path = raw_npz(tmp_path / "a.npz", images=npy(PIXELS), labels=npy(LABELS), class_names=names)
    start = time.process_time()
    with pytest.raises(DataError, match=sentence):
        read_images(path, "any")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("name", ["images", "labels", "class_names"])
def test_object_arrays_are_refused_and_nothing_is_unpickled(tmp_path: Path, name: str, unpickled: list[str]) -> None:
    arrays: dict[str, Any] = {"images": PIXELS, "labels": LABELS, "class_names": np.array(["a", "b", "c"])}
    arrays[name] = np.array([{"any": "thing"}] * 24, dtype=object)
    with pytest.raises(DataError, match=rf"{name} of .* is an array of object.* pickles.*never opened"):
        read_images(npz(tmp_path / "set.npz", **arrays), "any")
    assert unpickled == []


def test_a_structured_array_with_objects_inside_is_refused(tmp_path: Path, unpickled: list[str]) -> None:
    hidden = np.zeros(24, dtype=[("x", "u1"), ("y", "O")])
    with pytest.raises(DataError, match="never opened"):
        read_images(npz(tmp_path / "set.npz", images=hidden, labels=LABELS), "any")
    assert unpickled == []


def test_a_zip_bomb_is_refused_quickly_and_before_anything_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    side = 2**14
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("images.npy", "w") as member:
            member.write(header((2, side, side)))
            for _ in range(2 * side // 64):
                member.write(bytes(64 * side))
        archive.writestr("labels.npy", npy(np.array([0, 1])))
    assert path.stat().st_size < 4e6

    def unpacked(*_: Any, **__: Any) -> None:
        raise AssertionError("the bomb was unpacked")

    monkeypatch.setattr(zipfile.ZipFile, "open", unpacked)
    start = time.process_time()
    with pytest.raises(DataError, match=r"would unpack to 536,.*refused as a zip bomb"):
        read_images(path, "any")
    assert time.process_time() - start < 0.5


def test_sizes_that_the_archive_lies_about_are_refused(tmp_path: Path) -> None:
    path = raw_npz(tmp_path / "a.npz", images=npy(PIXELS), labels=npy(LABELS))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x01\x02"))
    content[entry + 20 : entry + 28] = (10**9).to_bytes(4, "little") * 2  # of the first member, in the directory
    path.write_bytes(content)
    with pytest.raises(DataError, match="zip bomb"):
        read_images(path, "any")


@pytest.mark.parametrize("shape", [(10**12, 8, 8), (2**62, 4, 4), (-1, 6, 8), (24, 6, 9), (23, 6, 8), (0, 10**30)])
def test_a_header_that_declares_other_than_what_is_there_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = raw_npz(tmp_path / "a.npz", images=header(shape) + bytes(24 * 6 * 8), labels=npy(LABELS))
    with pytest.raises(DataError, match=r"declares .* bytes in its header and holds|cannot read"):
        read_images(path, "any")


def test_an_array_of_nothing_that_would_be_written_for_months_is_not_among_the_cleaned_data(tmp_path: Path) -> None:
    path = raw_npz(tmp_path / "a.npz", images=npy(PIXELS), labels=npy(LABELS), more=header((10**18,), "|S0"))
    reader = NumpyArchive(path, "a.npz")
    kept = torch.ones(24, dtype=torch.bool)
    kept[0] = False
    (tmp_path / "out").mkdir()
    reader.copy_kept(None, kept, tmp_path / "out")
    with np.load(tmp_path / "out" / "a.npz") as archive:
        assert set(archive.files) == {"images", "labels"}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = npz(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*set\.npz: Bad CRC-32"):
        read_images(path, "any")


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = raw_npz(tmp_path / "a.npz", images=npy(PIXELS), labels=npy(LABELS))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("labels.npy", npy(1 - LABELS % 2))
    with pytest.raises(DataError, match="two arrays of one name"):
        read_images(path, "any")


def test_compression_that_numpy_never_uses_is_refused(tmp_path: Path) -> None:
    path = raw_npz(tmp_path / "a.npz", zipfile.ZIP_LZMA, images=npy(PIXELS), labels=npy(LABELS))
    with pytest.raises(DataError, match="packed in a way that NumPy never uses"):
        read_images(path, "any")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        (
            {"images": PIXELS},
            r"neither the arrays images and labels nor x_train and y_train; it holds: images;",
        ),
        (
            {"images": PIXELS / np.float32(255), "labels": LABELS},
            r"are float32, and pixels must be uint8.*times 255",
        ),
        ({"images": PIXELS[:, :, :, :2], "labels": LABELS}, r"have shape .* 1, 3 or 4 channels"),
        ({"images": PIXELS[0, 0], "labels": LABELS[:8]}, r"have shape \(8, 3\)"),
        ({"images": PIXELS[:, :0], "labels": LABELS}, r"have shape \(24, 0, 8, 3\)"),
        (
            {"images": PIXELS, "labels": LABELS[:20]},
            r"24 images and 20 labels; there must be one label an image",
        ),
        ({"images": PIXELS[:0], "labels": LABELS[:0]}, r"at least one image"),
        ({"images": PIXELS, "labels": LABELS / 2}, r"labels in .* are float64, not whole numbers"),
        ({"images": PIXELS, "labels": LABELS - 1}, r"go down to -1 .*unknown"),
        (
            {"images": PIXELS, "labels": LABELS * 10**12},
            r"go up to 2000000000000, and at most 65,536 classes",
        ),
        ({"images": PIXELS, "labels": np.full(24, 2**64 - 1, np.uint64)}, r"at most 65,536 classes"),
        (
            {"images": PIXELS, "labels": np.eye(24, dtype=int)},
            r"shape \(24, 24\), and labels must be one whole number",
        ),
        (
            {"images": PIXELS, "labels": LABELS * 0},
            r"all 24 images of .* are of class 0; .* at least two classes",
        ),
        (
            {"images": PIXELS, "labels": LABELS, "class_names": np.arange(3)},
            r"class_names of .* list of texts",
        ),
        ({"images": PIXELS, "labels": LABELS, "class_names": np.array(["a", "b"])}, r"there are 2 classes"),
        ({"x_train": PIXELS, "y_train": LABELS, "split": "test"}, r"has no test split; it has: train"),
    ],
)
def test_what_cannot_be_images_and_labels_is_refused_with_the_reason(
    tmp_path: Path, arrays: dict[str, Any], sentence: str
) -> None:
    split = arrays.get("split", "any")
    path = npz(tmp_path / "set.npz", **{name: array for name, array in arrays.items() if name != "split"})
    with pytest.raises(DataError, match=sentence):
        read_images(path, split)


def test_zip_files_of_other_things_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cat/1\x1b[31m.png", b"...")
    with pytest.raises(DataError, match=r"it holds: cat/1\.png;"):
        read_images(path, "any")


def outcome(path: Path) -> ImageSet | DataError:
    """Read a hostile file; anything but an image set or a `DataError` is the test's failure."""
    try:
        return read_images(path, "any")
    except DataError as error:
        return error


def valid_archive() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=PIXELS[:6], labels=LABELS[:6], class_names=np.array(["a", "b", "c"]))
    return buffer.getvalue()


VALID = valid_archive()
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(content=st.binary(max_size=300))
def test_random_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    for start in (b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b""):
        (tmp_path / "set.npz").write_bytes(start + content)
        assert isinstance(outcome(tmp_path / "set.npz"), DataError)


@fuzz
@given(
    flips=st.lists(st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.integers(0, len(VALID)),
    keep=st.booleans(),
)
def test_damaged_archives_are_read_right_or_refused(
    tmp_path: Path, flips: list[tuple[int, int]], cut: int, keep: bool
) -> None:
    content = bytearray(VALID)
    for place, value in flips:
        content[place] = value
    (tmp_path / "set.npz").write_bytes(content if keep else content[:cut])
    read = outcome(tmp_path / "set.npz")
    if isinstance(read, ImageSet):
        assert np.array_equal(read.images.numpy(), channels_first(PIXELS[:6]))


@fuzz
@given(
    text=st.one_of(
        st.text(max_size=120),
        st.fixed_dictionaries(
            {
                "descr": st.sampled_from(
                    ["|u1", "<i8", "|O", "<U0", "|V8", "", "<f8", "(2,)u1", 3, [("a", "|O")], None]
                ),
                "fortran_order": st.sampled_from([True, False, 0, None]),
                "shape": st.one_of(
                    st.tuples(st.integers(-3, 2**70), st.integers(-3, 9)),
                    st.just(()),
                    st.just("x"),
                    st.none(),
                ),
            }
        ).map(repr),
    )
)
def test_hostile_array_headers_are_refused(tmp_path: Path, text: str) -> None:
    written = text.encode("latin-1", "replace")
    array = b"\x93NUMPY\x01\x00" + len(written).to_bytes(2, "little") + written + bytes(64)
    raw_npz(tmp_path / "set.npz", images=array, labels=npy(LABELS))
    assert isinstance(outcome(tmp_path / "set.npz"), DataError)
    raw_npz(tmp_path / "set.npz", images=npy(PIXELS), labels=array)
    assert isinstance(outcome(tmp_path / "set.npz"), DataError)
