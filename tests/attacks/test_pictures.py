"""Pictures that are drawn, read or reflected, and Smooth's stretch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.attacks.test_badnets import prepare, some
from unbackdoor.attacks import Blended, Refool, Smooth, Stamp
from unbackdoor.attacks.patterns import cartoon, corners, outline, stripes, user_picture
from unbackdoor.attacks.refool import GAMMA, Reflection, blurred, ghost
from unbackdoor.attacks.smooth import Stretched
from unbackdoor.errors import DataError, InputError


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 40), (4, 12, 12)])
def test_drawings_fill_the_range_at_every_size(shape: tuple[int, int, int]) -> None:
    for picture in (cartoon(shape), stripes(shape, periods=2)):
        assert picture.shape == shape
        assert 0 <= float(picture.min()) < 0.45
        assert 0.8 < float(picture.max()) <= 1
        assert float(picture.std()) > 0.15
    assert torch.equal(cartoon(shape), cartoon(shape))


def test_stripes_are_a_sinusoid_from_black_to_white() -> None:
    expected = [(1 + np.sin(2 * np.pi * 6 * j / 32)) / 2 for j in range(32)]
    np.testing.assert_allclose(stripes((1, 2, 32))[0, 1], expected, atol=1e-6)


@pytest.mark.parametrize("name", ["apple", "square", "watermark"])
@pytest.mark.parametrize("size", [(32, 32), (28, 40), (64, 64), (16, 16)])
def test_shapes_are_masks_of_a_moderate_size(name: str, size: tuple[int, int]) -> None:
    mask = outline(name, *size)
    assert mask.shape == (1, *size)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0.03 < float(mask.mean()) < 0.3


def test_the_square_is_a_quarter_of_the_side() -> None:
    mask = outline("square", 32, 32)
    assert bool((mask[:, 24:, 24:] == 1).all())
    assert float(mask.sum()) == 64


def test_corners_are_four_squares() -> None:
    mask = corners((3, 32, 32), 3)
    assert float(mask.sum()) == 36
    assert all(
        float(part.sum()) == 9 for part in (mask[:, :3, :3], mask[:, :3, -3:], mask[:, -3:, :3], mask[:, -3:, -3:])
    )
    with pytest.raises(InputError, match="four corners of 17 pixels"):
        corners((3, 32, 32), 17)


def saved(folder: Path, pixels: np.ndarray) -> Path:
    path = folder / "picture.png"
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_of_the_user_s_is_blended_in(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    train = some()
    fitted = prepare(Blended(picture=saved(tmp_path, pixels), alpha=0.3), train)
    assert isinstance(fitted.trigger, Stamp)
    np.testing.assert_allclose(fitted.trigger.pattern.permute(1, 2, 0) * 255, pixels, atol=1e-3)
    changed = fitted.trigger.stamp(train.images)[0].permute(1, 2, 0).numpy()
    expected = np.rint(0.7 * train.images[0].permute(1, 2, 0).numpy().astype(float) + 0.3 * pixels)
    assert int(np.abs(changed - expected).max()) <= 1


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 8, 50)])
def test_a_picture_takes_the_shape_of_the_images(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    pixels = np.full((40, 60, 3), (255, 0, 0), dtype=np.uint8)
    picture = user_picture(saved(tmp_path, pixels), shape)
    assert picture.shape == shape
    expected = [1 / 3] if shape[0] == 1 else [1, 0, 0]
    np.testing.assert_allclose(picture.mean((1, 2)), expected, atol=1e-3)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the picture .*name an image file"):
        prepare(Blended(picture=tmp_path / "none.png"), some())
    with pytest.raises(InputError, match="name an image file"):
        prepare(Blended(picture=tmp_path), some())
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match="cannot decode"):
        prepare(Blended(picture=tmp_path / "text.png"), some())
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG")
    (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:-30])
    with pytest.raises(DataError):
        prepare(Blended(picture=tmp_path / "cut.png"), some())
    with pytest.raises(InputError, match="the pattern is noise, cartoon or stripes"):
        prepare(Blended(pattern="plaid"), some())  # type: ignore[arg-type]


def test_smooth_stretches_every_image_to_the_full_range() -> None:
    train = some()
    trigger = prepare(Smooth(), train).trigger
    assert isinstance(trigger, Stretched)
    for before, after in zip(train.images[:20], trigger(train.images[:20].float() / 255)):
        sums = before.double().numpy() / 255 + trigger.signal.double().numpy()
        expected = (sums - sums.min()) / (sums.max() - sums.min())
        np.testing.assert_allclose(after, expected, atol=1e-6)
    assert float(trigger.signal.max()) == pytest.approx(0.2)


def test_an_image_that_cannot_be_stretched_stays_finite_and_as_it_was() -> None:
    flat = torch.full((1, 1, 4, 4), 0.3)
    assert torch.equal(Stretched(signal=torch.zeros(1, 4, 4))(flat), flat)


def test_reflections_are_mixed_in_linear_light() -> None:
    train = some()
    trigger = prepare(Refool(reflections=7), train).trigger
    assert isinstance(trigger, Reflection)
    assert trigger.layers.shape == (7, 3, 32, 32)
    images = train.images[:30].double() / 255
    layers = trigger.layers.double().numpy()
    used = set()
    for before, after in zip(images.numpy(), trigger(images.float()).numpy()):
        mixed = [(0.4 * before**GAMMA + 0.6 * layer) ** (1 / GAMMA) for layer in layers]
        distances = [float(np.abs(after - one).max()) for one in mixed]
        assert min(distances) < 1e-5
        used.add(int(np.argmin(distances)))
    assert len(used) >= 5, "different images get different reflections"


def test_what_is_out_of_focus_is_a_gaussian_blur() -> None:
    light = torch.rand(2, 32, 32, generator=torch.Generator().manual_seed(0))
    draws = torch.Generator().manual_seed(3)
    sigma = 1 + 4 * float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    ours = blurred(light, draws).numpy()
    theirs = np.stack([gaussian_filter(one, sigma, mode="nearest", radius=round(2 * sigma)) for one in light.numpy()])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_a_ghost_is_the_picture_twice() -> None:
    light = torch.zeros(1, 32, 32)
    light[0, 10, 12] = 1
    doubled = ghost(light, torch.Generator().manual_seed(0))
    places = doubled[0].nonzero()
    assert len(places) == 2
    assert float(doubled.sum()) == pytest.approx(1)
    down, right = (places[1] - places[0]).tolist()
    assert 1 <= down <= 8
    assert 1 <= right <= 8


@pytest.mark.parametrize("attack", [Refool(share=0.0), Refool(share=1.0), Refool(reflections=0), Smooth(amplitude=0.0)])
def test_options_out_of_range_are_refused(attack: Refool | Smooth) -> None:
    with pytest.raises(InputError):
        prepare(attack, some())
