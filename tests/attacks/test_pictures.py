"""Pictures that are drawn, read or reflected, and Smooth's stretch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from tests.attacks.test_badnets import prepare, some
from tests.planted import network, runtime
from tests.planted import pictures as pictures_of_the_planted
from tests.refusals import refused
from unbackdoor.attacks import BadNets, Blended, Refool, Smooth, Stamp, TaCT, TrojanNN
from unbackdoor.attacks.kept import key_of
from unbackdoor.attacks.patterns import cartoon, corners, outline, stripes, user_picture
from unbackdoor.attacks.refool import GAMMA, Reflection, blurred, ghost
from unbackdoor.attacks.smooth import Stretched
from unbackdoor.errors import DataError, InputError
from unbackdoor.options import files_of


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


def test_a_patch_and_a_square_show_the_user_s_picture_black_pixels_too(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    pixels[0, 0] = 0
    path, train = saved(tmp_path, pixels), some(100)
    for attack in (
        BadNets(picture=path, size=8),
        TaCT(picture=path, poison_rate=0.05, cover_rate=0.05, covers=()),
    ):
        trigger = prepare(attack, train).trigger
        stamped = trigger.stamp(train.images)
        np.testing.assert_array_equal(stamped[3, :, 24:, 24:].permute(1, 2, 0), pixels)
        stamped[:, :, 24:, 24:] = train.images[:, :, 24:, 24:]
        assert torch.equal(stamped, train.images)
    with pytest.raises(InputError, match="cannot read the picture"):
        prepare(BadNets(picture=tmp_path / "none.png"), train)


def test_a_picture_of_the_user_s_is_the_shape_that_is_searched(tmp_path: Path) -> None:
    pixels = np.zeros((32, 32), dtype=np.uint8)
    pixels[4:9, 20:22] = 255
    trigger = prepare(TrojanNN(picture=saved(tmp_path, pixels), steps=0), some()).trigger
    assert isinstance(trigger, Stamp)
    np.testing.assert_array_equal(trigger.mask[0], pixels / 255)
    with pytest.raises(InputError, match="nothing is left of the shape"):
        prepare(TrojanNN(picture=saved(tmp_path, 0 * pixels), steps=0), some())


@pytest.mark.parametrize("size", [1, 3, 8, 32])
def test_the_square_of_trojannn_has_the_size_that_is_asked_for(size: int) -> None:
    trigger = prepare(TrojanNN(shape="square", size=size, steps=0), some()).trigger
    assert isinstance(trigger, Stamp)
    assert float(trigger.mask.sum()) == size**2
    assert bool((trigger.mask[0, 32 - size :, 32 - size :] == 1).all())


def test_a_size_of_a_shape_that_has_none_is_refused(tmp_path: Path) -> None:
    for attack in (TrojanNN(size=3), TrojanNN(shape="square", size=3, picture=tmp_path / "a.png")):
        with pytest.raises(InputError, match="only the square has a size"):
            prepare(attack, some())
    for size in (0, 33):
        with pytest.raises(InputError, match="the side of the square is 1 to 32"):
            prepare(TrojanNN(shape="square", size=size), some())


def folder_of(folder: Path, count: int) -> tuple[Path, np.ndarray]:
    pictures = np.random.default_rng(1).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    folder.mkdir()
    for number, one in enumerate(pictures):
        Image.fromarray(one).save(folder / f"{number}.png")
    (folder / ".hidden").write_text("no picture")
    return folder, pictures


def test_the_user_s_pictures_are_reflected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import unbackdoor.attacks.refool as module

    folder, pictures = folder_of(tmp_path / "pictures", 5)
    for name in ("ghost", "blurred"):
        monkeypatch.setattr(module, name, lambda light, draws: light)

    def numbers(reflections: int, seed: int = 0) -> list[int]:
        trigger = prepare(Refool(pictures=folder, reflections=reflections), some(), seed).trigger
        assert isinstance(trigger, Reflection)
        shown = (trigger.layers ** (1 / GAMMA) * 255).permute(0, 2, 3, 1).numpy()
        return [int(np.abs(pictures - one).max((1, 2, 3)).argmin()) for one in shown]

    assert sorted(numbers(50)) == [0, 1, 2, 3, 4], "all, if there are fewer than asked for"
    assert len(set(numbers(3))) == 3
    assert numbers(3) == numbers(3)
    assert any(numbers(3, seed) != numbers(3) for seed in (1, 2, 3))


def test_a_folder_of_no_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no picture")
    for name, words in (("none", "cannot read"), ("file", "cannot read"), ("empty", "holds no files")):
        with pytest.raises(InputError, match=f"{words}.*name a folder of image files"):
            prepare(Refool(pictures=tmp_path / name), some())
    (tmp_path / "empty" / "text.png").write_text("hello")
    with pytest.raises(DataError, match="cannot decode"):
        prepare(Refool(pictures=tmp_path / "empty"), some())


def test_the_content_of_the_pictures_decides_what_records_and_keys_say(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path / "pictures", 2)
    picture = saved(tmp_path, np.zeros((4, 4, 3), dtype=np.uint8))
    attacks = [Refool(pictures=folder), TrojanNN(picture=picture), BadNets(picture=picture), TaCT(picture=picture)]

    def known() -> list[tuple[dict[str, str], str]]:
        train = pictures_of_the_planted(20, 0)
        return [(files_of(one), key_of(one, train, network(0), runtime())) for one in attacks]

    before = known()
    assert before == known()
    assert [list(files) for files, _ in before] == [["pictures pictures"], *[["picture picture.png"]] * 3]
    Image.new("RGB", (4, 4), "red").save(picture)
    Image.new("RGB", (32, 32), "red").save(folder / "1.png")
    for (files, key), (others, other) in zip(before, known()):
        assert files != others
        assert key != other


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


@pytest.mark.parametrize(
    ("attack", "options"),
    [(Refool, {"share": 0.0}), (Refool, {"share": 1.0}), (Refool, {"reflections": 0}), (Smooth, {"amplitude": 0.0})],
)
def test_options_out_of_range_are_refused(attack: type[Any], options: dict[str, Any]) -> None:
    refused(lambda **given: prepare(attack(**given), some()), options)
