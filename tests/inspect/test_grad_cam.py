"""Grad-CAM against its definition."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.inspect.known import Known, described, linear, material, random_images
from tests.planted import planted, runtime
from unbackdoor.attacks import AllToOne
from unbackdoor.attacks.trigger import Additive
from unbackdoor.errors import InputError, UnsuitedError
from unbackdoor.inspect import GradCAM, Pictures
from unbackdoor.inspect.grad_cam import grad_cam, share_on, warmed
from unbackdoor.testing.samples import hooks_on

pytest.importorskip("captum", reason="captum is not installed")


def averaging(weights: torch.Tensor) -> nn.Sequential:
    """Return a network of maps that are the channels, their means, and a linear layer with these weights."""
    head = nn.Linear(weights.shape[1], len(weights), bias=False)
    with torch.no_grad():
        head.weight.copy_(weights)
    return nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)


def test_on_a_linear_network_it_is_the_weighted_sum_of_the_channels() -> None:
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(4, 3, generator=generator)
    images = torch.rand(6, 3, 5, 7, generator=generator)
    classes = torch.tensor([0, 1, 2, 3, 0, 1])
    network = averaging(weights)
    # The logit is the weighted mean of the pixels, so its gradient by a pixel is the weight over their number.
    expected = torch.einsum("bk,bkhw->bhw", weights[classes] / 35, images).clamp_min(0)
    assert (expected == 0).any()
    torch.testing.assert_close(grad_cam(network, network[0], images, classes), expected)


def test_on_a_trained_network_it_is_the_definition_image_by_image() -> None:
    suspect, images = planted(1).suspect, material().clean.images[:5].float() / 255
    layer = suspect.body[7]
    classes = suspect(images).argmax(1)
    found = grad_cam(suspect, layer, images, classes)
    for image, number, seen in zip(images, classes, found, strict=True):
        kept: list[torch.Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        logits = suspect(image[None])
        hook.remove()
        (gradient,) = torch.autograd.grad(logits[0, number], kept[0])
        maps = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True).clamp_min(0)
        stretched = F.interpolate(maps, size=(12, 12), mode="bilinear", align_corners=False)[0, 0]
        torch.testing.assert_close(seen, stretched.detach(), rtol=1e-3, atol=1e-6)
    assert hooks_on(suspect) == 0


def test_the_share_on_some_pixels_is_a_mean_over_maps_that_are_not_zero() -> None:
    maps = torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]], [[0.0, 0.0]]])
    pixels = torch.tensor([[[True, False]], [[True, False]], [[True, False]]])
    assert share_on(maps, pixels) == pytest.approx((0.25 + 0.5) / 2)
    assert math.isnan(share_on(maps[2:], pixels[2:]))


def test_the_answer_of_a_backdoored_model_rests_on_the_trigger() -> None:
    found = GradCAM(layer="5").inspect(planted(1).suspect, material(), runtime())
    suspect = found.measured["suspect"]
    assert 0 < suspect["trigger_area"] <= 25 / 144
    assert suspect["triggered_on_trigger"] > 2 * suspect["trigger_area"]
    assert suspect["triggered_on_trigger"] > 2 * suspect["clean_on_trigger"]
    assert f"{100 * suspect['triggered_on_trigger']:.1f} % lies there with the trigger" in found.headline


def test_a_trigger_all_over_the_image_has_no_place_of_its_own() -> None:
    everywhere = Known(Additive(signal=torch.full((3, 12, 12), 0.1)), AllToOne(target=planted(1).target))
    found = GradCAM(images=10, shown=1).inspect(planted(1).suspect, material(attack=everywhere), runtime())
    assert found.measured["suspect"]["trigger_area"] > 0.9
    assert "has no place that could stand out" in found.headline


def test_the_last_maps_with_positions_are_taken_and_pictures_say_what_they_show() -> None:
    found = GradCAM(images=20, shown=2).inspect(planted(1).suspect, material(), runtime())
    assert found.measured["suspect"]["layer"] == "9", "pooled to 2 x 2"
    gallery = found.figures[0]
    assert isinstance(gallery, Pictures)
    kinds = [caption.split(":")[0] for caption, _ in gallery.pictures]
    assert kinds == ["clean", "triggered", "triggered"] * 2
    assert "answer" in gallery.pictures[0][0]
    assert all(image.shape == (3, 12, 12) and 0 <= image.min() <= image.max() <= 1 for _, image in gallery.pictures)
    alone = GradCAM(images=20, shown=2).inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    assert isinstance(alone.figures[0], Pictures)
    assert len(alone.figures[0].pictures) == 8
    assert not GradCAM(shown=0).inspect(planted(1).suspect, material(attack=None), runtime()).figures


def test_heat_colours_the_pixels() -> None:
    pixels, heat = torch.rand(3, 2, 2), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    shown = warmed(pixels, heat)
    grey = 0.6 * pixels.mean(0) + 0.1
    torch.testing.assert_close(shown[:, 0, 0], grey[0, 0].expand(3))
    assert float(shown[0, 0, 1] - shown[2, 0, 1]) > 0.5
    assert warmed(pixels[:1], heat).shape == (3, 2, 2), "of a grey image too"


def test_what_it_cannot_look_at_is_said() -> None:
    flat = linear(torch.rand(3, 1, 4, 4))
    given = material(clean=random_images((1, 4, 4), 9, 3), attack=None, reference=None)
    with pytest.raises(UnsuitedError, match="has none with positions"):
        GradCAM().inspect(flat, given, runtime())
    with pytest.raises(UnsuitedError, match="needs a layer that puts out feature maps"):
        GradCAM(layer="0").inspect(flat, given, runtime())
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(InputError, match="layer9"):
        GradCAM(layer="layer9").inspect(described(body, (1, 4, 4), 3), given, runtime())


def test_without_captum_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(UnsuitedError, match=r"pip install 'unbackdoor\[inspect\]'"):
        GradCAM().inspect(planted(1).suspect, material(), runtime())


@pytest.mark.parametrize("options", [{"images": 0}, {"shown": -1}])
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^GradCAM: .* found "):
        GradCAM(**options)
