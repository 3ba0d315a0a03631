from __future__ import annotations

import contextlib
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.generated import channels_first, encoded, random_pixels
from unbackdoor.data import decode, limits
from unbackdoor.data.decode import decode_images
from unbackdoor.errors import DataError


def decoded(*images: bytes) -> np.ndarray:
    named = [(f"image{row}.png", image) for row, image in enumerate(images)]
    return decode_images(named, len(named), "the set").numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_give_the_very_pixels(kind: str) -> None:
    pixels = random_pixels(5)
    assert np.array_equal(decoded(*(encoded(image, kind) for image in pixels)), channels_first(pixels))


@pytest.mark.parametrize(("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95})])
def test_lossy_formats_give_nearly_the_pixels(kind: str, options: dict[str, int]) -> None:
    ramp = np.linspace(0, 255, 32).astype(np.uint8)
    smooth = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], (1, 32)), np.full((32, 32), 99)], 2).astype(
        np.uint8
    )
    result = decoded(encoded(smooth, kind, **options))[0].transpose(1, 2, 0)
    assert np.abs(result.astype(int) - smooth).mean() < 4
    assert not np.array_equal(result, smooth)


def test_images_are_stored_channels_last() -> None:
    images = decode_images([("a", encoded(random_pixels(1)[0]))] * 3, 3, "s")
    assert images.shape == (3, 3, 6, 8)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_grey_images_keep_one_channel() -> None:
    grey = random_pixels(3, (6, 8))
    assert np.array_equal(decoded(*map(encoded, grey)), grey[:, None])


@pytest.mark.parametrize("colour_row", [0, 1, 2])
def test_one_colour_image_makes_all_of_them_rgb_without_changing_pixels(colour_row: int) -> None:
    grey, colour = random_pixels(3, (6, 8)), random_pixels(1, seed=1)[0]
    images = [encoded(image) for image in grey]
    images[colour_row] = encoded(colour)
    expected = np.repeat(grey[:, None], 3, axis=1)
    expected[colour_row] = colour.transpose(2, 0, 1)
    assert np.array_equal(decoded(*images), expected)


def test_black_and_white_becomes_0_and_255() -> None:
    bits = np.array([[True, False], [False, True]])
    assert decoded(encoded(Image.fromarray(bits))).tolist() == [[[[255, 0], [0, 255]]]]


def test_16_bit_grey_is_scaled_not_cut_off() -> None:
    deep = np.array([[0, 257], [32_896, 65_535]], np.uint16)
    assert decoded(encoded(Image.fromarray(deep))).tolist() == [[[[0, 1], [128, 255]]]]


def test_alpha_is_dropped_without_blending() -> None:
    rgba = random_pixels(1, (6, 8, 4))[0]
    rgba[:, :, 3] = 0
    assert np.array_equal(decoded(encoded(rgba))[0], rgba[:, :, :3].transpose(2, 0, 1))
    grey_alpha = Image.merge("LA", [Image.fromarray(rgba[:, :, 0]), Image.fromarray(rgba[:, :, 3])])
    assert np.array_equal(decoded(encoded(grey_alpha))[0, 0], rgba[:, :, 0])


@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": b"\x00\x80\xff"}])
@pytest.mark.filterwarnings("error")
def test_palettes_become_their_colours(options: dict[str, object]) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 230])
    image.putdata([0, 1, 2])
    result = decoded(encoded(image, **options))
    assert result[0, :, 0].T.tolist() == [[250, 10, 20], [30, 240, 50], [60, 70, 230]]


def test_a_photograph_is_turned_as_its_exif_says() -> None:
    pixels = random_pixels(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    result = decoded(encoded(Image.fromarray(pixels), "PNG", exif=exif))
    assert np.array_equal(result[0].transpose(1, 2, 0), np.rot90(pixels, -1))


def test_a_broken_image_is_named() -> None:
    good = encoded(random_pixels(1)[0])
    with pytest.raises(DataError, match=r"cannot decode image image1\.png of the set: .*; replace or remove it"):
        decoded(good, good[:60])
    with pytest.raises(DataError, match=r"cannot decode image image1\.png of the set: it is none of PNG"):
        decoded(good, b"<svg/>")
    with pytest.raises(DataError, match=r"cannot decode image image0\.png"):
        decoded(b"")


def test_postscript_is_not_handed_to_an_interpreter() -> None:
    with pytest.raises(DataError, match="it is none of PNG"):
        decoded(encoded(random_pixels(1)[0], "EPS"))


def test_floating_point_pixels_are_refused() -> None:
    image = Image.fromarray(np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match="floating-point"):
        decoded(encoded(image, "TIFF"))


def test_two_sizes_are_refused_naming_two_files() -> None:
    with pytest.raises(DataError, match=r"image0\.png is 8x6 and image2\.png is 6x8 pixels .*resize them all"):
        decoded(
            encoded(random_pixels(1)[0]),
            encoded(random_pixels(1)[0]),
            encoded(random_pixels(1, (8, 6, 3))[0]),
        )


def png_declaring(width: int, height: int) -> bytes:
    """A PNG of a few kilobytes whose header declares `width` x `height` black pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("width", [8_200, 10_000, 60_000])
def test_decompression_bombs_are_refused_quickly(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    start = time.process_time()
    with pytest.raises(DataError, match="cannot decode image"):
        decoded(png_declaring(width, width))
    # The bound holds for a program that lifted Pillow's own.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(DataError, match=f"it has {width}x{width} pixels, more than"):
        decoded(png_declaring(width, width))
    assert time.process_time() - start < 1


def test_more_pixels_than_memory_are_refused_before_they_are_allocated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = encoded(random_pixels(1)[0])
    with pytest.raises(DataError, match=r"takes .* GiB when it is unpacked, .*resize the images"):
        decode_images([("a", image)], 10**13, "the set")
    monkeypatch.setattr(limits, "physical_memory", lambda: 2 * (2 * 6 * 8 * 3) - 1)
    with pytest.raises(DataError, match="takes"):
        decode_images([("a", image)] * 2, 2, "the set")


def test_the_memory_is_that_of_the_container_if_it_has_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = limits.physical_memory()
    files = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(limits, "_CONTAINER_LIMITS", files)
    for content, memory in (("1000000\n", 10**6), ("max\n", machine), ("9223372036854771712\n", machine)):
        files[0].write_text(content)
        assert limits.physical_memory() == memory
    files[1].write_text("500")
    assert limits.physical_memory() == 500


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(decode.FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6),
    early=st.booleans(),
    cut=st.none() | st.integers(0, 400),
)
def test_images_with_changed_bytes_are_decoded_or_refused(
    kind: str, changes: list[tuple[int, int]], early: bool, cut: int | None
) -> None:
    content = bytearray(encoded(random_pixels(1)[0], kind))
    for place, value in changes:
        content[place % min(len(content), 64 if early else 2**20)] = value
    with contextlib.suppress(DataError):
        assert decoded(bytes(content[:cut])).dtype == np.uint8


def test_more_or_fewer_images_than_declared_are_refused() -> None:
    image = ("a", encoded(random_pixels(1)[0]))
    with pytest.raises(DataError, match="holds more than the 2 images"):
        decode_images([image] * 3, 2, "the set")
    with pytest.raises(DataError, match="declares 4 images but holds 3"):
        decode_images([image] * 3, 4, "the set")
    with pytest.raises(DataError, match="holds no images"):
        decode_images([], 0, "the set")


def test_only_harmless_formats_are_tried() -> None:
    assert set(decode.FORMATS).isdisjoint({"EPS", "PDF", "WMF", "FPX", "MIC"})
