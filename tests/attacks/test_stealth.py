"""How visible a trigger is, against plain loops and a library's reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tests.attacks.test_badnets import prepare, some
from unbackdoor.attacks import Blended, stealth
from unbackdoor.errors import InputError


def similarity(x: np.ndarray, y: np.ndarray) -> float:
    """Return the structural similarity of two channels by its formula, away from the edges."""

    def blur(values: np.ndarray) -> np.ndarray:
        blurred: np.ndarray = gaussian_filter(values, 1.5, truncate=3.5, mode="reflect")[5:-5, 5:-5]
        return blurred

    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    local = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(local.mean())


def test_the_four_figures_are_those_of_plain_loops() -> None:
    train = some(12)
    after = prepare(Blended(), train).trigger.stamp(train.images)
    seen = stealth(train.images, after)
    x, y = train.images.numpy() / 255.0, after.numpy() / 255.0
    assert seen.psnr == pytest.approx(10 * math.log10(1 / ((x - y) ** 2).mean()), abs=1e-3)
    assert seen.changed == pytest.approx((x != y).any(1).mean())
    assert seen.largest == pytest.approx(np.abs(x - y).max())
    expected = np.mean([similarity(a, b) for one, other in zip(x, y) for a, b in zip(one, other)])
    assert seen.ssim
    assert seen.ssim < 0.97
    assert seen.ssim == pytest.approx(expected, abs=0.005)


def test_nothing_changed_is_seen_as_such() -> None:
    images = some(5).images
    seen = stealth(images, images.clone())
    assert math.isinf(seen.psnr)
    assert (seen.changed, seen.largest) == (0, 0)
    assert seen.ssim == pytest.approx(1, abs=1e-6)
    assert seen.to_json()["psnr"] is None


def test_more_noise_is_more_visible() -> None:
    images, generator = some(8).images, torch.Generator().manual_seed(0)
    noise = torch.randn(images.shape, generator=generator)
    faint, strong = ((images + size * noise).clamp(0, 255).to(torch.uint8) for size in (3, 30))
    first, second = stealth(images, faint), stealth(images, strong)
    assert first.ssim
    assert second.ssim
    assert first.psnr > second.psnr + 10
    assert first.ssim > second.ssim


def test_small_images_have_no_similarity_and_other_shapes_are_refused() -> None:
    images = some(4, (1, 10, 40)).images
    assert stealth(images, 255 - images).ssim is None
    with pytest.raises(InputError, match="stealth compares images with images"):
        stealth(images, images[:2])
    with pytest.raises(InputError, match="found 0 and 0"):
        stealth(images[:0], images[:0])
