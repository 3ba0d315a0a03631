"""Universal perturbations lead all images to a class, and stay within their radius."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.planted import CLASSES, pictures, planted, runtime
from unbackdoor.scan.universal import norms, universal_perturbations, within


def test_changes_that_are_too_long_are_shortened_and_no_others() -> None:
    changes = torch.randn(5, 2, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [0.01, 0.1, 1, 10, 0]
    ).view(-1, 1, 1, 1)
    found = within(changes, 1.0)
    for before, after in zip(changes, found):
        length = float(before.norm())
        torch.testing.assert_close(after, before / max(1.0, length))
    assert float(norms(changes)[4]) > 0


def test_of_a_linear_model_the_direction_is_that_of_the_weights() -> None:
    """With two classes the steepest descent is along the difference of their weights, wherever one stands."""
    linear = nn.Linear(12, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(2, 12, generator=torch.Generator().manual_seed(1)))
    model = nn.Sequential(nn.Flatten(), linear)
    # Grey images, so that no pixel leaves [0, 1].
    images = torch.full((8, 3, 2, 2), 128, dtype=torch.uint8)
    found = universal_perturbations(model, images, 2, 0.1, runtime(), steps=5)
    direction = (linear.weight[1] - linear.weight[0]).detach()
    expected = 0.1 * direction / direction.norm()
    torch.testing.assert_close(found[1].flatten(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].flatten(), -expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("radius", [0.5, 2.0])
def test_no_change_is_longer_than_the_radius(radius: float) -> None:
    images = pictures(40, 3).images
    found = universal_perturbations(planted(1).suspect, images, CLASSES, radius, runtime(), steps=4)
    assert 0 < float(norms(found).max()) <= radius * (1 + 1e-5)


def test_a_planted_backdoor_has_the_easiest_one() -> None:
    models = planted(1)
    images = pictures(120, 3)
    found = universal_perturbations(models.suspect, images.images, CLASSES, 2.0, runtime())
    success = []
    for number, change in enumerate(found):
        others = images.images[images.labels != number].float() / 255
        with torch.no_grad():
            success.append(float((models.suspect((others + change).clamp(0, 1)).argmax(1) == number).float().mean()))
    assert max(success) == success[models.target] > 0.3


def test_the_seed_decides() -> None:
    models = planted(1)
    images = pictures(40, 3).images
    one, again, other = (
        universal_perturbations(models.suspect, images, CLASSES, 1.0, runtime(seed), steps=3) for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
