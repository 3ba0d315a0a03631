"""Corruptions: against plain loops and other libraries, growing with the severity, the same in any company."""

from __future__ import annotations

import colorsys
import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from tests.planted import runtime
from unbackdoor.sift.corruptions import KINDS, SEVERITIES, Draws, blur, digital, noise, weather
from unbackdoor.training import Runtime


def pictures(count: int, side: int = 24, channels: int = 3, seed: int = 0) -> Tensor:
    """Return smooth pictures, as bytes."""
    coarse = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (255 * smooth).to(torch.uint8)


def corrupted(images: Tensor, kind: str, severity: int, run: Runtime | None = None) -> Tensor:
    return KINDS[kind](images.float() / 255, severity, Draws.of(images, kind, run or runtime())).clamp(0, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_they_grow_with_their_severity(kind: str) -> None:
    images = pictures(12, 32)
    changes = [float((corrupted(images, kind, s) - images / 255).abs().mean()) for s in range(1, SEVERITIES + 1)]
    assert changes[0] > 0.005
    assert changes[-1] < 0.6
    # Theirs do not all grow at each step: of glass, snow and coarse pixels, some lengths fall where others grow, and
    # what bends goes from far and smooth to near and rough.
    if kind != "elastic_transform":
        least = 0.5 if kind in ("glass_blur", "snow", "pixelate", "frost") else 0.99
        assert all(later > least * earlier for earlier, later in itertools.pairwise(changes))
        assert changes[-1] > 1.1 * changes[0]


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 33), (4, 16, 16)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_corrupted_alike_in_any_company_and_of_any_shape(kind: str, shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (5, *shape), generator=generator, dtype=torch.uint8)
    together, draws = corrupted(images, kind, 2), Draws.of(images, kind, runtime())
    assert together.shape == images.shape
    assert bool(together.isfinite().all())
    torch.testing.assert_close(corrupted(images[3:4], kind, 2), together[3:4])
    # Also if those that are left over are some of the images only, after what is drawn was drawn.
    KINDS[kind](images.float() / 255, 1, draws)
    some = torch.tensor([4, 1])
    torch.testing.assert_close(KINDS[kind](images[some].float() / 255, 2, draws.only(some)).clamp(0, 1), together[some])


def test_other_seeds_kinds_and_images_draw_otherwise() -> None:
    images = pictures(2)
    first = Draws.of(images, "fog", runtime()).uniform("a", 4)
    assert not torch.equal(first[0], first[1])
    for other in (
        Draws.of(images, "snow", runtime()).uniform("a", 4),
        Draws.of(images, "fog", Runtime(device="cpu", threads=1, seed=7)).uniform("a", 4),
        Draws.of(images, "fog", runtime()).uniform("b", 4),
    ):
        assert not torch.equal(first, other)


def test_counts_of_light_are_quantiles_of_poissons_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    draws = Draws.of(pictures(2), "shot_noise", runtime())
    quantiles = draws.uniform("quantiles", 3, 10, 10)
    for severity, quanta in enumerate(noise.QUANTA, start=1):
        expected = stats.poisson.ppf(quantiles.double().numpy(), quanta * images.double().numpy()) / quanta
        found = noise.shot_noise(images, severity, draws).double().numpy()
        # Where a quantile falls on a step, rounding decides.
        assert float((np.abs(found - expected) < 1e-6).mean()) > 0.995
    assert float(noise.shot_noise(torch.zeros_like(images), 5, draws).abs().max()) == 0


def test_noise_and_impulses_have_their_size() -> None:
    grey, images = torch.full((1, 1, 200, 200), 0.5), pictures(1)
    noisy = noise.gaussian_noise(grey, 2, Draws.of(images, "gaussian_noise", runtime()))
    assert float((noisy - grey).std()) == pytest.approx(0.12, rel=0.03)
    hit = noise.impulse_noise(grey, 3, Draws.of(images, "impulse_noise", runtime()))
    assert float((hit == 0).float().mean()) == pytest.approx(0.045, abs=0.005)
    assert float((hit == 1).float().mean()) == pytest.approx(0.045, abs=0.005)


@pytest.mark.parametrize("deviation", [0.7, 1.5, 20.0])
def test_blur_is_that_of_scipy(deviation: float) -> None:
    images = torch.rand(2, 3, 15, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = blur.gaussian_blur(images, deviation)
    reach = max(1, int(np.ceil(3 * deviation)))
    expected = ndimage.gaussian_filter(images.numpy(), (0, 0, deviation, deviation), mode="mirror", radius=reach)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_out_of_focus_a_point_is_a_disk_and_what_is_even_stays() -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[0, 0, 20, 20] = 1
    draws = Draws.of(pictures(1), "defocus_blur", runtime())
    disk = blur.defocus_blur(point, 3, draws)[0, 0]
    y, x = np.indices(disk.shape) - 20
    assert float(disk.sum()) == pytest.approx(1, abs=1e-4)
    inside, outside = y**2 + x**2 <= 4**2, y**2 + x**2 > 8**2
    np.testing.assert_allclose(disk.numpy()[inside], 1 / np.sum(y**2 + x**2 <= 36), rtol=0.02)
    assert float(np.abs(disk.numpy()[outside]).max()) < 1e-6
    even = torch.full((1, 3, 9, 12), 0.3)
    for kind in (blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur):
        torch.testing.assert_close(kind(even, 5, draws), even)


def test_glass_is_what_a_plain_loop_makes_of_one_image() -> None:
    images = pictures(3, 16)
    severity, draws = 2, Draws.of(images, "glass_blur", runtime())
    soft, most, rounds = blur.GLASS[severity - 1]
    found = blur.glass_blur(images.float() / 255, severity, draws)
    shifts = draws.uniform("shifts", 3, 16, 16, 2)
    for number, image in enumerate(blur.gaussian_blur(images.float() / 255, soft)):
        plain = image.clone()
        for turn in range(rounds):
            for y in range(16 - most - 1, most, -1):
                for x in range(16 - most - 1, most, -1):
                    right, down = (int(value * 2 * most) - most for value in shifts[number, turn, y, x].tolist())
                    here, there = plain[:, y, x].clone(), plain[:, y + down, x + right].clone()
                    plain[:, y, x], plain[:, y + down, x + right] = there, here
        torch.testing.assert_close(found[number], blur.gaussian_blur(plain[None], soft)[0])


def test_what_moves_is_smeared_along_a_line() -> None:
    point = torch.zeros(1, 1, 61, 61)
    point[0, 0, 30, 30] = 1
    found = blur.smeared(point, 10, 3.0, torch.tensor([0.0]))[0, 0]
    weights = np.exp(-(np.arange(21) ** 2) / 18)
    np.testing.assert_allclose(found[30, 10:31].flip(0).numpy(), weights / weights.sum(), rtol=1e-5)
    assert float(found.sum()) == pytest.approx(1)
    down = blur.smeared(point, 10, 3.0, torch.tensor([torch.pi / 2]))[0, 0]
    torch.testing.assert_close(down, found.T)


def test_an_enlargement_by_one_changes_nothing_and_by_two_shows_the_middle() -> None:
    images = pictures(1, 17).float() / 255
    torch.testing.assert_close(blur.enlarged(images, 1.0), images)
    torch.testing.assert_close(blur.enlarged(images, 2.0)[:, :, ::2, ::2], images[:, :, 4:13, 4:13])


def test_light_raises_the_value_alone() -> None:
    images = pictures(1, 6).float() / 255
    images[0, :, 0, 0] = 0
    found = weather.brightness(images, 2, Draws.of(pictures(1), "brightness", runtime()))
    for y, x in itertools.product(range(6), range(6)):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[0, :, y, x].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
        assert found[0, :, y, x].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("finer", [1.4, 2.0])
def test_clouds_go_from_dark_to_light_and_fainter_wisps_make_them_smoother(finer: float) -> None:
    images = pictures(4, 32)
    draws = Draws.of(images, "fog", runtime())
    clouds = weather._clouds(draws, images.float(), finer)
    assert clouds.shape == (4, 1, 32, 32)
    assert clouds.amin((1, 2, 3)).tolist() == [0] * 4
    assert clouds.amax((1, 2, 3)).tolist() == pytest.approx([1] * 4)
    # Neighbours are more alike than places far from each other.
    near, far = ((clouds - clouds.roll(step, 3)).abs().mean() for step in (1, 16))
    assert float(near) < 0.7 * float(far)
    rougher = weather._clouds(draws, images.float(), 1.2)
    assert float(near) < float((rougher - rougher.roll(1, 3)).abs().mean())


def test_fog_and_contrast_are_their_formulas() -> None:
    images = pictures(2).float() / 255
    draws = Draws.of(pictures(2), "fog", runtime())
    clouds = weather._clouds(draws, images, 1.7)
    for row, (image, cloud) in enumerate(zip(images, clouds)):
        expected = (image + 2.5 * cloud) * image.max() / (image.max() + 2.5)
        torch.testing.assert_close(weather.fog(images, 3, draws)[row], expected)
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(digital.contrast(images, 5, draws), 0.05 * images + 0.95 * mean)


def test_compression_is_that_of_pillow() -> None:
    images = pictures(2)
    found = digital.jpeg_compression(images.float() / 255, 4, Draws.of(images, "jpeg_compression", runtime()))
    for row, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image.movedim(0, -1).numpy()).save(file, "jpeg", quality=10)
        expected = torch.from_numpy(np.array(Image.open(file))).movedim(-1, 0)
        torch.testing.assert_close(found[row], expected / 255)


def test_bending_by_nothing_changes_nothing_and_a_shift_of_all_corners_is_a_shift(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pictures(1, 20).float() / 255
    draws = Draws.of(pictures(1), "elastic_transform", runtime())
    monkeypatch.setattr(digital, "ELASTIC", ((0.0, 0.1, 0.0),))
    torch.testing.assert_close(digital.elastic_transform(images, 1, draws), images, atol=1e-4, rtol=0)
    # All three corners two pixels to the right and one down.
    monkeypatch.setattr(digital, "ELASTIC", ((0.0, 0.1, 0.1),))
    draws.kept["corners"] = torch.tensor([1.0, 0.75]).expand(1, 3, 2)
    found = digital.elastic_transform(images, 1, draws)
    torch.testing.assert_close(found[:, :, 1:, 2:], images[:, :, :-1, :-2], atol=1e-4, rtol=0)


def test_coarse_pixels_are_squares() -> None:
    images = pictures(1, 20).float() / 255
    found = digital.pixelate(images, 2, Draws.of(pictures(1), "pixelate", runtime()))
    squares = images.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(found, squares.repeat_interleave(2, 2).repeat_interleave(2, 3))
