"""Patches land where they are told, their gradients are those of the loss, and every place can be drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.planted import CLASSES, SHAPE, network, pictures, runtime
from unbackdoor.scan import passes
from unbackdoor.scan.patches import answers_to, draw_places, patch_gradients, stamped, success


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(3, 12, 12), (1, 6, 9)])
def test_each_image_gets_its_own_patch_at_its_own_place_and_nothing_else_changes(shape: tuple[int, int, int]) -> None:
    images, patches = torch.rand(40, *shape, generator=draws()), torch.rand(40, shape[0], 4, 4, generator=draws(1))
    places = draw_places(40, shape, 4, draws(2))
    found = stamped(images, patches, places)
    for row, (top, left) in enumerate(places.tolist()):
        expected = images[row].clone()
        expected[:, top : top + 4, left : left + 4] = patches[row]
        assert torch.equal(found[row], expected)


def test_all_places_are_drawn_the_last_ones_too_and_none_beyond() -> None:
    places = draw_places(5000, (3, 6, 9), 3, draws())
    assert {tuple(place) for place in places.tolist()} == {(row, column) for row in range(4) for column in range(7)}


def test_a_patch_as_large_as_the_image_is_the_image() -> None:
    patches = torch.rand(2, 1, 5, 5)
    assert torch.equal(stamped(torch.zeros(2, 1, 5, 5), patches, draw_places(2, (1, 5, 5), 5, draws())), patches)


def rows_of_patches() -> tuple[Tensor, Tensor, Tensor]:
    images = pictures(6, 1).images
    return images, torch.rand(4, 6, 3, 3, 3, generator=draws(1)), draw_places(6, SHAPE, 3, draws(2))


@pytest.mark.parametrize("at_once", [512, 5])
def test_gradients_and_answers_are_those_of_one_image_after_another(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(passes.PLACES, "cpu", at_once * 12 * 12)
    model = network(0).eval().requires_grad_(False)
    images, patches, places = rows_of_patches()

    def loss(logits: Tensor, numbers: Tensor) -> Tensor:
        return F.cross_entropy(logits, numbers // 6, reduction="none")

    found = patch_gradients(model, images, patches, places, loss, runtime())
    answers = answers_to(model, images, patches, places, runtime())
    for row in range(4):
        for column in range(6):
            patch = patches[row, column].clone().requires_grad_(True)
            top, left = places[column].tolist()
            image = images[column].float() / 255
            cut = torch.ones(1, *SHAPE[1:])
            cut[:, top : top + 3, left : left + 3] = 0
            whole = image * cut + F.pad(patch, (left, 9 - left, top, 9 - top))
            logits = model(whole[None])
            (expected,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([row])), patch)
            torch.testing.assert_close(found[row, column], expected, rtol=1e-3, atol=1e-6)
            assert int(answers[row, column]) == int(logits.argmax())


def test_success_counts_images_of_other_classes_alone() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    answers = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [2, 2, 2, 2]])
    assert success(answers, torch.tensor([1, 0, 2]), labels).tolist() == pytest.approx([1.0, 1 / 3, 1.0])
    assert CLASSES > 2
