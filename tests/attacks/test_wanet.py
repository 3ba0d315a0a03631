"""WaNet's warp against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.attacks.test_badnets import prepare, some
from tests.planted import runtime
from unbackdoor.attacks import BPP, CLEAN, COVER, POISON, Blind, WaNet
from unbackdoor.attacks.wanet import WaNetHook, Warp
from unbackdoor.errors import InputError
from unbackdoor.testing.samples import sample_network
from unbackdoor.training import Batch, Recipe, fit


def sampled(image: np.ndarray, row: float, column: float) -> float:
    """Return a bilinear sample of one channel; outside is never asked for."""
    top, left = math.floor(row), math.floor(column)
    bottom, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
    down, across = row - top, column - left
    upper = (1 - across) * image[top, left] + across * image[top, right]
    lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
    return float((1 - down) * upper + down * lower)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 8, 14)])
def test_each_pixel_comes_from_its_place_plus_the_field(shape: tuple[int, int, int]) -> None:
    train = some(20, shape)
    trigger = prepare(WaNet(strength=2.0), train).trigger
    assert isinstance(trigger, Warp)
    image = train.images[:1].float() / 255
    warped = trigger(image)[0].numpy()
    channels, height, width = shape
    for c, i, j in np.ndindex(channels, height, width):
        right = min(max(2 * j / (width - 1) - 1 + float(trigger.field[i, j, 0]), -1), 1)
        down = min(max(2 * i / (height - 1) - 1 + float(trigger.field[i, j, 1]), -1), 1)
        expected = sampled(image[0, c].numpy(), (down + 1) / 2 * (height - 1), (right + 1) / 2 * (width - 1))
        assert warped[c, i, j] == pytest.approx(expected, abs=2e-5)


def test_the_field_is_an_enlarged_grid_of_mean_size_one_over_the_side() -> None:
    attack = WaNet()
    trigger = prepare(attack, some()).trigger
    assert isinstance(trigger, Warp)
    points = 2 * torch.rand(1, 2, 4, 4, generator=runtime().generator("warp")) - 1
    points /= points.abs().mean()
    enlarged = F.interpolate(points, (32, 32), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(trigger.field, 0.5 * enlarged / 32)
    # align_corners: the corners of the grid are those of the image.
    assert float(points[0, 0, 0, 0]) == pytest.approx(float(trigger.field[0, 0, 0] * 64), abs=1e-5)


def test_a_tenth_is_warped_and_relabelled_and_twice_as_many_are_warped_with_noise() -> None:
    train = some(100)
    fitted = prepare(WaNet(target=3), train)
    assert isinstance(fitted.hook, WaNetHook)
    images = train.images.float() / 255
    batch = Batch(images=images, targets=train.labels, rows=torch.arange(100))
    made = fitted.hook.batch(torch.nn.Identity(), batch, torch.Generator().manual_seed(0))
    assert torch.equal(made.images[:10], fitted.trigger(images[:10]))
    assert made.targets[:10].tolist() == [3] * 10
    assert torch.equal(made.targets[10:], train.labels[10:])
    covered = made.images[10:30]
    assert not torch.equal(covered, images[10:30])
    assert isinstance(fitted.trigger, Warp)
    draws = torch.Generator().manual_seed(0)
    torch.rand(2, generator=draws)
    noise = (2 * torch.rand(20, 32, 32, 2, generator=draws) - 1) / 32
    assert float(noise.abs().max()) <= 1 / 32, "half a pixel"
    torch.testing.assert_close(covered, fitted.trigger.warp(images[10:30], fitted.trigger.field + noise))
    assert torch.equal(made.images[30:], images[30:])
    assert torch.equal(fitted.train.images, train.images), "the data themselves stay clean"


def test_crops_come_after_the_warp_whose_traces_at_their_edges_no_image_in_use_has() -> None:
    train = some(64)
    white = replace(train, images=torch.full_like(train.images, 255))
    fitted = prepare(WaNet(cover_rate=0.0), train)
    assert isinstance(fitted.hook, WaNetHook)
    seen: list[torch.Tensor] = []

    class Watching(WaNetHook):
        def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            seen.append(batch.images.clone())
            return super().loss(model, batch)

    hook = Watching(WaNet(cover_rate=0.0), fitted.trigger, fitted.criterion)
    recipe = Recipe(epochs=1, batch_size=32, augmentation="crop", low_resolution=0.0)
    fit(sample_network(train.shape), replace(white, labels=white.labels % 4), recipe, runtime(), hook=hook)
    # No warp shows on a white image; warped after the crop, its black border would have shades between.
    shades = torch.cat([images.flatten() for images in seen])
    assert float((shades - shades.round()).abs().max()) < 1e-5
    assert 0 < float(shades.mean()) < 1


def test_soft_labels_are_refused() -> None:
    train = some(20)
    hook = prepare(BPP(), train).hook
    assert hook
    batch = Batch(images=train.images.float() / 255, targets=torch.rand(20, 5), rows=torch.arange(20))
    with pytest.raises(InputError, match="BPP poisons batches, whose labels mixing makes soft"):
        hook.batch(torch.nn.Identity(), batch, torch.Generator())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"grid": 1}, "grid must be 2 or more"),
        ({"strength": 0.0}, "strength positive"),
        ({"poison_rate": 0.0}, "shares of a batch"),
        ({"poison_rate": 0.7, "cover_rate": 0.4}, "together make 1 at most"),
        ({"labels": "clean"}, "labels must be all-to-one or all-to-all"),
        ({"target": 7}, "target class 7 is out of range"),
    ],
)
def test_options_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(replace(WaNet(), **change), some())


def test_a_warp_that_moves_nothing_is_refused_before_any_training() -> None:
    for attack in (WaNet(strength=1e-6), WaNet(strength=1e-6, labels="all-to-all")):
        with pytest.raises(InputError, match="changes no pixel"):
            prepare(attack, some())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_warp_is_made_in_single_precision_at_least(dtype: torch.dtype) -> None:
    train = some(20)
    fitted = prepare(WaNet(), train)
    assert isinstance(fitted.hook, WaNetHook)
    images = (train.images.float() / 255).to(dtype)
    warped = fitted.trigger(images)
    assert warped.dtype == dtype
    exact = fitted.trigger(images.float())
    torch.testing.assert_close(warped.float(), exact.to(dtype).float(), atol=1e-5, rtol=0)
    assert fitted.hook.cover(images[:5], images[5:10], torch.Generator()).dtype == dtype


def test_images_of_another_size_are_refused() -> None:
    trigger = prepare(WaNet(), some()).trigger
    with pytest.raises(InputError, match="use images of that size"):
        trigger(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("attack", [WaNet(target=1), BPP(target=1, poison_rate=0.05)], ids=["WaNet", "BPP"])
def test_attacks_with_a_fixed_trigger_can_poison_data_too(attack: WaNet | BPP) -> None:
    train = some(400)
    fitted = attack.poison_data(train, runtime())
    poison, cover, clean = (fitted.kinds == kind for kind in (POISON, COVER, CLEAN))
    assert int(poison.sum()) == round(400 * attack.poison_rate)
    assert int(cover.sum()) == round(400 * attack.cover_rate)
    assert torch.equal(fitted.train.images[poison], fitted.trigger.stamp(train.images[poison]))
    assert fitted.train.labels[poison].unique().tolist() == [1]
    assert torch.equal(fitted.train.labels[~poison], train.labels[~poison])
    assert torch.equal(fitted.train.images[clean], train.images[clean])
    assert not torch.equal(fitted.train.images[cover], fitted.trigger.stamp(train.images[cover]))
    unchanged = (fitted.train.images[cover] == train.images[cover]).flatten(1).all(1)
    assert not bool(unchanged.any())
    assert fitted.hook is None
    again = attack.poison_data(train, runtime())
    assert torch.equal(again.train.images, fitted.train.images)
    with pytest.raises(InputError, match="is no image; raise it"):
        replace(attack, poison_rate=0.001).poison_data(train, runtime())


def test_attacks_that_learn_their_trigger_cannot() -> None:
    with pytest.raises(InputError, match="Blind needs its own training"):
        Blind().poison_data(some(50), runtime())
