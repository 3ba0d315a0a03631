"""Blended mixes one fixed picture into the whole image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.attacks.test_badnets import some
from tests.planted import runtime
from unbackdoor.attacks import POISON, Blended, FittedAttack, Stamp
from unbackdoor.errors import InputError


def prepare(attack: Blended, seed: int = 0, **options: Any) -> FittedAttack:
    return attack.prepare(some(**options), lambda: pytest.fail("no model is needed"), runtime(seed))


@pytest.mark.parametrize("alpha", [0.2, 0.55, 1.0])
def test_poisoned_images_are_the_rounded_mixture(alpha: float) -> None:
    train = some()
    fitted = prepare(Blended(alpha=alpha))
    trigger = fitted.trigger
    assert isinstance(trigger, Stamp)
    poisoned = fitted.kinds == POISON
    assert int(poisoned.sum()) == 20
    mixed = (1 - alpha) * train.images[poisoned].double() + alpha * 255 * trigger.pattern.double()
    found = fitted.train.images[poisoned].double()
    assert float((found - mixed).abs().max()) <= 0.5 + 1e-4, "rounded to the nearest value, not truncated"
    assert torch.equal(fitted.train.images[~poisoned], train.images[~poisoned])
    assert set(fitted.train.labels[poisoned].tolist()) == {0}


def test_corners_have_the_values_computed_by_hand() -> None:
    trigger = prepare(Blended(alpha=0.25)).trigger
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    stamped = trigger.stamp(grey)[0]
    for channel, row, column in [(0, 0, 0), (1, 0, 31), (2, 31, 0), (0, 31, 31)]:
        value = 0.75 * 100 + 0.25 * 255 * float(trigger.pattern[channel, row, column])
        assert int(stamped[channel, row, column]) == round(value)


def test_the_picture_is_uniform_noise_over_the_whole_image_and_every_channel() -> None:
    pattern = prepare(Blended(), count=20, shape=(3, 64, 64)).trigger.pattern
    assert pattern.shape == (3, 64, 64)
    counts = torch.histc(pattern, 16, 0, 1)
    expected = pattern.numel() / 16
    assert float(((counts - expected) ** 2 / expected).sum()) < 37.7  # chi-squared, 15 degrees, 0.1 %
    assert abs(float(torch.corrcoef(pattern.flatten(1))[0, 1])) < 0.06
    assert abs(float(torch.corrcoef(torch.stack([pattern[:, 1:].flatten(), pattern[:, :-1].flatten()]))[0, 1])) < 0.04


def test_the_seed_decides_picture_and_rows() -> None:
    one, same, other = (prepare(Blended(), seed) for seed in (1, 1, 2))
    assert one.train.digest() == same.train.digest()
    assert torch.equal(one.trigger.pattern, same.trigger.pattern)
    assert not torch.equal(one.trigger.pattern, other.trigger.pattern)
    assert not torch.equal(one.kinds, other.kinds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.01}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"target": 5}, "out of range"),
        ({"poison_rate": 2.0}, "poison rate"),
        ({"alpha": 1e-4}, "changes no pixel"),
    ],
)
def test_options_that_cannot_work_are_refused_with_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(Blended(**options))
