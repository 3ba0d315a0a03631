"""Colours against `colorsys` and plain loops."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from unbackdoor.data.augment import ColorJitter, Grey

LUMA = np.array([0.299, 0.587, 0.114])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def jittered(images: Tensor, **factors: float) -> Tensor:
    """Jitter all images by given amounts; those not named change nothing."""
    amounts = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, **factors}
    draw = {key: torch.full((len(images),), value) for key, value in amounts.items()}
    draw["changed"] = torch.ones(len(images), dtype=torch.bool)
    return ColorJitter(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.5).apply(images, draw)


def colour(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1)


def reference(image: np.ndarray, brightness: float, contrast: float, saturation: float, turns: float) -> np.ndarray:
    """One RGB image (3, H, W), step by step and pixel by pixel."""
    image = np.clip(image * brightness, 0, 1)
    middle = np.mean([LUMA @ image[:, y, x] for y in range(image.shape[1]) for x in range(image.shape[2])])
    image = np.clip(middle + contrast * (image - middle), 0, 1)
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            grey = LUMA @ image[:, y, x]
            pixel = np.clip(grey + saturation * (image[:, y, x] - grey), 0, 1)
            hue, chroma, value = colorsys.rgb_to_hsv(*pixel)
            image[:, y, x] = colorsys.hsv_to_rgb((hue + turns) % 1, chroma, value)
    return image


@pytest.mark.parametrize("seed", range(4))
def test_jitter_takes_its_steps_in_the_documented_order(seed: int) -> None:
    images = torch.rand(5, 3, 4, 6, generator=seeded(seed)).double()
    jitter = ColorJitter(brightness=0.6, contrast=0.7, saturation=0.9, hue=0.5)
    draw = jitter.draw((5, 3, 4, 6), seeded(seed))
    for i, result in enumerate(jitter.apply(images, draw)):
        amounts = [float(draw[key][i]) for key in ("brightness", "contrast", "saturation", "hue")]
        assert np.allclose(result.numpy(), reference(images[i].numpy().copy(), *amounts), atol=1e-6)


def test_a_third_of_a_turn_makes_red_green_and_green_blue() -> None:
    red, green, blue = colour(0.8, 0.0, 0.0), colour(0.0, 0.8, 0.0), colour(0.0, 0.0, 0.8)
    for before, after in ((red, green), (green, blue), (blue, red)):
        torch.testing.assert_close(jittered(before, hue=1 / 3), after, rtol=0, atol=1e-5)
        torch.testing.assert_close(jittered(after, hue=-1 / 3), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [(0.0, 0.5, 1.0), (0.2, 0.2, 0.7)])
@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 0.1, 0.5])
def test_hue_agrees_with_colorsys_where_channels_are_equal(levels: tuple[float, ...], turns: float) -> None:
    colours = [(r, g, b) for r in levels for g in levels for b in levels]
    images = torch.tensor(colours).T.reshape(1, 3, 1, -1)
    for rgb, result in zip(colours, jittered(images, hue=turns)[0, :, 0].T, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)
        assert np.allclose(result.numpy(), expected, atol=1e-5), rgb


def test_saturation_scales_the_chroma_and_keeps_hue_and_luma() -> None:
    images = 0.3 + 0.4 * torch.rand(1, 3, 5, 5, generator=seeded())
    before = images[0].flatten(1).T.numpy()
    after = jittered(images, saturation=0.5)[0].flatten(1).T.numpy()
    for old, new in zip(before, after, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*old)
        new_hue, new_saturation, new_value = colorsys.rgb_to_hsv(*new)
        assert new_hue == pytest.approx(hue, abs=1e-4)
        assert new_saturation * new_value == pytest.approx(0.5 * saturation * value, abs=1e-5)
        assert LUMA @ new == pytest.approx(LUMA @ old, abs=1e-5)
    assert jittered(images, saturation=0.0)[0].std(dim=0).max() < 1e-6


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_saturation_hue_and_grey_leave_images_alone_that_are_not_rgb(channels: int) -> None:
    images = torch.rand(3, channels, 4, 4, generator=seeded())
    assert torch.equal(jittered(images, saturation=0.3, hue=0.4), images)
    assert torch.equal(Grey(probability=1.0).apply(images, {"grey": torch.ones(3, dtype=torch.bool)}), images)


@pytest.mark.parametrize("channels", [1, 4])
def test_brightness_and_contrast_change_images_that_are_not_rgb(channels: int) -> None:
    images = 0.3 + 0.4 * torch.rand(3, channels, 4, 4, generator=seeded())
    torch.testing.assert_close(jittered(images, brightness=0.5), 0.5 * images)
    for image, result in zip(images, jittered(images, contrast=0.5), strict=True):
        torch.testing.assert_close(result, image.mean() + 0.5 * (image - image.mean()))


def test_grey_replaces_the_drawn_images_by_their_luma() -> None:
    images = torch.rand(6, 3, 4, 4, generator=seeded())
    grey = torch.tensor([True, False, True, False, False, True])
    result = Grey().apply(images, {"grey": grey})
    assert torch.equal(result[~grey], images[~grey])
    luma = np.tensordot(images.numpy(), LUMA, (1, 0))
    for i in grey.nonzero().flatten().tolist():
        for channel in range(3):
            assert np.allclose(result[i, channel].numpy(), luma[i], atol=1e-6)


def test_an_image_that_the_draw_spares_is_left_as_it_is() -> None:
    images = torch.rand(6, 3, 4, 4, generator=seeded())
    jitter = ColorJitter(probability=0.5)
    draw = {**jitter.draw((6, 3, 4, 4), seeded()), "changed": torch.tensor([True, False] * 3)}
    same = (jitter.apply(images, draw) == images).flatten(1).all(1)
    assert same.tolist() == [False, True] * 3


def test_white_stays_within_the_range() -> None:
    white = torch.ones(1, 3, 2, 2)
    for result in (
        Grey().apply(white, {"grey": torch.tensor([True])}),
        jittered(white, contrast=1.7, hue=0.3),
    ):
        assert result.max() <= 1
        torch.testing.assert_close(result, white)


def test_amounts_fill_their_ranges() -> None:
    draw = ColorJitter(brightness=0.3, contrast=0.5, saturation=1.5, hue=0.2).draw((5000, 3, 4, 4), seeded())
    ranges = {"brightness": (0.7, 1.3), "contrast": (0.5, 1.5), "saturation": (0.0, 2.5), "hue": (-0.2, 0.2)}
    for key, (low, high) in ranges.items():
        assert stats.kstest(draw[key].numpy(), "uniform", args=(low, high - low)).pvalue > 1e-4, key
    assert bool(draw["changed"].all())
    changed = int(ColorJitter(probability=0.8).draw((5000, 3, 4, 4), seeded())["changed"].sum())
    low, high = stats.binom.interval(0.9999, 5000, 0.8)
    assert low <= changed <= high
    greys = int(Grey(probability=0.2).draw((5000, 3, 4, 4), seeded())["grey"].sum())
    low, high = stats.binom.interval(0.9999, 5000, 0.2)
    assert low <= greys <= high
