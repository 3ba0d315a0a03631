"""What a repair took out is found, and what it left in is not."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.planted import CLASSES, planted, runtime
from unbackdoor.models import Network
from unbackdoor.purify import weak_spots as module
from unbackdoor.purify.weak_spots import LONGER, RADIUS, Difference, longer, successes, weak_spots
from unbackdoor.testing.samples import same_state, state_of

ALL = torch.arange(CLASSES)


def spots(suspect: Network, repaired: Network, classes: torch.Tensor = ALL) -> torch.Tensor:
    clean = planted(1).data.need_clean("Test")
    return weak_spots([suspect], [repaired], clean, classes, runtime())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_target_of_a_planted_backdoor_is_what_a_clean_twin_does_not_share(seed: int) -> None:
    models = planted(seed)
    before = state_of(models.suspect), state_of(models.twin)
    small = spots(models.suspect, models.twin)
    # Planted backdoors take more than small changes.
    found = longer(small)
    assert same_state(before[0], state_of(models.suspect))
    assert same_state(before[1], state_of(models.twin))
    on_suspect, on_twin = (
        successes(model, models.test, found, ALL, runtime()) for model in (models.suspect, models.twin)
    )
    assert int(on_suspect.argmax()) == models.target
    assert float(on_suspect[models.target]) > 0.2
    assert float(on_twin.max()) < 0.05
    for changes, length in ((small, RADIUS), (found, LONGER)):
        assert float(changes.flatten(1).norm(dim=1).max()) == pytest.approx(length * 12, rel=1e-4)


def test_a_repair_that_changed_nothing_took_little_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # Planted backdoors take more than small changes.
    monkeypatch.setattr(module, "RADIUS", LONGER)
    models = planted(1)
    by_twin, by_copy = (
        float(successes(models.suspect, models.test, spots(models.suspect, other), ALL, runtime()).mean())
        for other in (models.twin, copy.deepcopy(models.suspect))
    )
    assert by_copy < by_twin / 3


def test_only_the_classes_asked_for_are_sought() -> None:
    models, some = planted(1), torch.tensor([2, 5])
    found = spots(models.suspect, models.twin, some)
    assert found.shape == (2, 3, 12, 12)
    assert len(successes(models.suspect, models.test, found, some, runtime())) == 2


def test_success_counts_images_of_other_classes_only() -> None:
    """By a slow loop."""
    models, clean = planted(2), planted(2).test
    found = spots(models.suspect, models.twin)
    got = successes(models.suspect, clean, found, ALL, runtime())
    for one in range(CLASSES):
        images = [image for image, label in zip(clean.images, clean.labels.tolist()) if label != one]
        led = [int(models.suspect((image / 255 + found[one]).clamp(0, 1)[None]).argmax()) == one for image in images]
        assert float(got[one]) == pytest.approx(sum(led) / len(led))


def test_the_difference_is_that_of_log_probabilities_where_the_repaired_model_may_answer() -> None:
    first, second = torch.nn.Flatten(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4))
    images = 30 * torch.rand(3, 1, 2, 2)
    repaired = second(images).softmax(1)
    assert 0 < int((repaired < 0.01).sum()) < 12
    expected = (first(images).softmax(1) / repaired.clamp_min(0.01)).log()
    torch.testing.assert_close(Difference([first], [second])(images), expected)
    # Of several, those that are the least sure of a class.
    third = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 4))
    both = torch.minimum(second(images).softmax(1), third(images).softmax(1))
    expected = (torch.minimum(first(images).softmax(1), both) / both.clamp_min(0.01)).log()
    torch.testing.assert_close(Difference([first, second, third], [third, second])(images), expected)
