"""Crops, flips, shifts and rotations against plain loops over images and pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from unbackdoor.data.augment import Flip, PadCrop, ResizeCrop, Rotate, Translate


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """One image, each pixel moved by itself; what is left bare is zero."""
    result = np.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                result[:, row + down, column + right] = image[:, row, column]
    return result


def interpolated(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """The colour between four pixels, whose centres have whole numbers; zero outside."""
    top, left = math.floor(row), math.floor(column)
    colour = np.zeros(len(image))
    for y in (top, top + 1):
        for x in (left, left + 1):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                colour += (1 - abs(row - y)) * (1 - abs(column - x)) * image[:, y, x]
    return colour


shapes = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(shape=shapes, padding=st.integers(0, 5), seed=st.integers(0, 1000), last=st.booleans())
def test_crop_is_the_piece_of_the_padded_image(
    shape: tuple[int, int, int, int], padding: int, seed: int, last: bool
) -> None:
    images = torch.randint(0, 256, shape, generator=seeded(seed), dtype=torch.uint8)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    crop = PadCrop(padding=padding)
    draw = crop.draw(shape, seeded(seed + 1))
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    height, width = shape[2:]
    for i, piece in enumerate(crop.apply(images, draw)):
        top, left = int(draw["rows"][i]), int(draw["columns"][i])
        assert np.array_equal(piece.numpy(), padded[i, :, top : top + height, left : left + width])


@settings(max_examples=40, deadline=None)
@given(shape=shapes, fraction=st.floats(0, 1), seed=st.integers(0, 1000))
def test_translation_moves_each_pixel(shape: tuple[int, int, int, int], fraction: float, seed: int) -> None:
    images = torch.rand(shape, generator=seeded(seed))
    translate = Translate(fraction=fraction)
    draw = translate.draw(shape, seeded(seed + 1))
    most = int(fraction * shape[2]), int(fraction * shape[3])
    for i, moved in enumerate(translate.apply(images, draw)):
        down, right = most[0] - int(draw["rows"][i]), most[1] - int(draw["columns"][i])
        assert abs(down) <= most[0]
        assert abs(right) <= most[1]
        assert np.array_equal(moved.numpy(), shifted(images[i].numpy(), down, right))


@pytest.mark.parametrize("seed", range(3))
def test_flip_mirrors_the_drawn_images_left_to_right(seed: int) -> None:
    images = torch.rand(8, 3, 5, 6, generator=seeded(seed))
    draw = Flip().draw((8, 3, 5, 6), seeded(seed))
    assert 0 < draw["flipped"].sum() < 8
    for image, flipped, result in zip(images, draw["flipped"], Flip().apply(images, draw), strict=True):
        expected = image.numpy()[:, :, ::-1] if flipped else image.numpy()
        assert np.array_equal(result.numpy(), expected)


def test_flip_rate_and_shifts_are_as_likely_as_stated() -> None:
    count = 20_000
    flips = int(Flip(probability=0.3).draw((count, 3, 8, 8), seeded())["flipped"].sum())
    low, high = stats.binom.interval(0.9999, count, 0.3)
    assert low <= flips <= high
    assert Flip(probability=1.0).draw((100, 3, 8, 8), seeded())["flipped"].all()
    draw = PadCrop(padding=2).draw((count, 3, 8, 8), seeded())
    for shifts in draw.values():
        seen = torch.bincount(shifts)
        assert len(seen) == 5
        assert stats.chisquare(seen.numpy()).pvalue > 1e-4
    assert abs(np.corrcoef(draw["rows"], draw["columns"])[0, 1]) < 0.05


@pytest.mark.parametrize(("degrees", "quarters"), [(90.0, 1), (180.0, 2), (270.0, 3), (-90.0, 3)])
@pytest.mark.parametrize("size", [7, 8])
def test_quarter_turns_are_counter_clockwise(degrees: float, quarters: int, size: int) -> None:
    images = torch.rand(2, 3, size, size, generator=seeded())
    turned = Rotate(degrees=360.0).apply(images, {"degrees": torch.full((2,), degrees)})
    torch.testing.assert_close(turned, torch.rot90(images, quarters, (2, 3)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (2, 2, 6, 11), (2, 1, 12, 5)])
def test_rotation_turns_pixels_and_not_the_frame(shape: tuple[int, int, int, int]) -> None:
    images = torch.rand(shape, generator=seeded())
    angles = torch.tensor([25.0, -140.0])
    result = Rotate().apply(images, {"degrees": angles})
    height, width = shape[2:]
    for i, degrees in enumerate(angles.tolist()):
        turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
        for row in range(height):
            for column in range(width):
                # Complex numbers with the imaginary axis upwards; the source lies a turn back.
                place = complex(column - (width - 1) / 2, (height - 1) / 2 - row) / turn
                source = (height - 1) / 2 - place.imag, (width - 1) / 2 + place.real
                expected = interpolated(images[i].numpy(), *source)
                assert np.allclose(result[i, :, row, column].numpy(), expected, atol=1e-4)


def test_angles_fill_their_range_on_both_sides() -> None:
    angles = Rotate(degrees=15.0).draw((5000, 3, 8, 8), seeded())["degrees"].numpy()
    assert stats.kstest(angles, "uniform", args=(-15, 30)).pvalue > 1e-4


def test_rotation_keeps_its_precision_under_autocast() -> None:
    images = torch.rand(2, 3, 32, 32, generator=seeded())
    draw = Rotate().draw((2, 3, 32, 32), seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = Rotate().apply(images, draw)
    torch.testing.assert_close(result, Rotate().apply(images, draw), rtol=0, atol=1e-6)


def test_half_precision_images_are_sampled_at_the_right_places() -> None:
    images = torch.rand(2, 3, 300, 40, generator=seeded())
    draw = Rotate().draw((2, 3, 300, 40), seeded())
    result = Rotate().apply(images.bfloat16(), draw)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), Rotate().apply(images, draw), rtol=0, atol=1e-2)


@pytest.mark.parametrize("transform", [Rotate(), ResizeCrop()])
def test_rounded_weights_make_white_no_brighter(transform: Rotate | ResizeCrop) -> None:
    shape = (64, 1, 33, 47)
    assert transform.apply(torch.ones(shape), transform.draw(shape, seeded())).max() == 1


def piece_of(images: Tensor, top: int, left: int, height: int, width: int) -> Tensor:
    """The piece in pixels, enlarged by `ResizeCrop`."""
    rows, columns = images.shape[2:]
    fractions = {"top": top / rows, "left": left / columns, "height": height / rows, "width": width / columns}
    draw = {key: torch.full((len(images),), value) for key, value in fractions.items()}
    return ResizeCrop().apply(images, draw)


def test_resized_crop_is_the_enlarged_piece() -> None:
    images = torch.rand(2, 3, 12, 20, generator=seeded())
    result = piece_of(images, 2, 9, 8, 10)
    expected = F.interpolate(images[:, :, 2:10, 9:19], size=(12, 20), mode="bilinear", align_corners=False)
    # The outermost pixels see beyond the piece, which interpolate does not.
    torch.testing.assert_close(result[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], rtol=0, atol=1e-5)


def test_resized_crop_in_a_corner_repeats_the_border() -> None:
    images = torch.rand(2, 3, 12, 20, generator=seeded())
    expected = F.interpolate(images[:, :, :8, :10], size=(12, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        piece_of(images, 0, 0, 8, 10)[:, :, :-1, :-1], expected[:, :, :-1, :-1], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1.0, 1.0), (2.0, 3.0)])
def test_pieces_have_the_area_and_ratio_asked_for_and_lie_inside(ratio: tuple[float, float]) -> None:
    scale = (0.2, 0.9)
    draw = ResizeCrop(scale=scale, ratio=ratio).draw((50_000, 3, 8, 16), seeded())
    top, left, height, width = (draw[key].double() for key in ("top", "left", "height", "width"))
    area = height * width
    assert stats.kstest(area.numpy(), "uniform", args=(0.2, 0.7)).pvalue > 1e-4
    assert top.min() >= 0
    assert left.min() >= 0
    assert max(height.max(), width.max()) <= 1, "also after rounding"
    assert (top + height).max() <= 1 + 1e-6
    assert (left + width).max() <= 1 + 1e-6
    found = width / height
    # A piece of that area is at most 1 / area times as wide as high.
    assert (found <= ratio[1] + 1e-5).all()
    assert (found >= torch.minimum(torch.tensor(ratio[0]), 1 / area) - 1e-5).all()
    if ratio[0] < ratio[1]:
        assert found.max() > ratio[1] - 0.1
        assert found[area < 0.3].min() < ratio[0] + 0.1
    places = top / (1 - height)
    assert stats.kstest(places.numpy()[(height < 0.99).numpy()], "uniform").pvalue > 1e-4
