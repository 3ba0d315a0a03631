"""SIG adds vertical stripes to images of the target class and changes no label."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.attacks.test_badnets import some
from tests.planted import runtime
from unbackdoor.attacks import POISON, SIG, AllToOne, FittedAttack
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError


def prepare(attack: SIG, train: ImageSet | None = None, seed: int = 0) -> FittedAttack:
    return attack.prepare(train or some(), lambda: pytest.fail("no model is needed"), runtime(seed))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 28), (64, 64)])
def test_every_pixel_gains_the_sinusoid_of_its_column(height: int, width: int) -> None:
    trigger = prepare(SIG(), some(shape=(3, height, width))).trigger
    grey = torch.full((1, 3, height, width), 128, dtype=torch.uint8)
    stamped = trigger.stamp(grey)[0]
    for column in range(width):
        value = 128 + 40 * math.sin(2 * math.pi * 6 * column / width)
        found = stamped[:, :, column].unique()
        assert len(found) == 1, "the same in every row and channel"
        assert abs(int(found) - value) <= 0.5 + 1e-3


def test_the_first_column_is_untouched_and_values_are_clipped_not_wrapped() -> None:
    trigger = prepare(SIG(amplitude=100 / 255, periods=8)).trigger  # columns 0, +100, 0, -100, ...
    ends = torch.tensor([0, 250], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    stamped = trigger.stamp(ends)
    assert stamped[0, 0, 0, :4].tolist() == [0, 100, 0, 0]
    assert stamped[1, 2, 31, :4].tolist() == [250, 255, 250, 150]


def test_only_the_target_class_is_touched_and_no_label_changes() -> None:
    train = some()
    fitted = prepare(SIG(target=2), train)
    poisoned = fitted.kinds == POISON
    assert int(poisoned.sum()) == 10, "5 % of all 200, not of the class"
    assert set(train.labels[poisoned].tolist()) == {2}
    assert torch.equal(fitted.train.labels, train.labels)
    assert torch.equal(fitted.train.images[~poisoned], train.images[~poisoned])
    assert all(not torch.equal(a, b) for a, b in zip(fitted.train.images[poisoned], train.images[poisoned]))
    assert fitted.criterion == AllToOne(target=2)


def test_the_whole_class_may_be_poisoned_but_no_more() -> None:
    assert int((prepare(SIG(poison_rate=0.2)).kinds == POISON).sum()) == 40
    with pytest.raises(InputError, match=r"only 40 may be poisoned; use at most 0\.2000"):
        prepare(SIG(poison_rate=0.21))


def test_the_seed_decides_the_rows() -> None:
    one, same, other = (prepare(SIG(), seed=seed).kinds for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": 9}, "out of range"),
        ({"amplitude": 0.0}, "amplitude"),
        ({"amplitude": -0.1}, "amplitude"),
        ({"amplitude": math.nan}, "amplitude"),
        ({"amplitude": math.inf}, "amplitude"),
        ({"periods": 0}, "periods"),
        ({"poison_rate": 0.0}, "poison rate"),
        ({"amplitude": 1e-4}, "changes no pixel"),
        ({"periods": 32}, "changes no pixel"),  # a multiple of the width: the sine is 0 in every column
    ],
)
def test_options_that_cannot_work_are_refused_with_a_sentence(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(SIG(**options))


def test_testing_may_be_stronger_than_training() -> None:
    train = some(200)
    fitted = prepare(SIG(amplitude=40 / 255, test_amplitude=60 / 255), train)
    alike = prepare(SIG(amplitude=40 / 255), train)
    assert torch.equal(fitted.train.images, alike.train.images)
    stronger = prepare(SIG(amplitude=60 / 255), train)
    assert torch.equal(fitted.trigger.stamp(train.images), stronger.trigger.stamp(train.images))
    with pytest.raises(InputError, match="amplitudes must lie above 0"):
        prepare(SIG(test_amplitude=0.0), train)
