"""The metrics, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from unbackdoor.attacks import AllToOne, Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Evaluation, Proportion, defense_effectiveness, evaluate
from unbackdoor.training import Runtime


class Corner(nn.Module):
    """Says class 0 where the corner is white, otherwise the class written in the first pixel."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        classes = (images[:, 0, 0, 0] * 255).round().long()
        classes[images[:, 0, -1, -1] > 0.9] = 0
        return torch.nn.functional.one_hot(classes, 4).float()


def labelled() -> ImageSet:
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    images[4, 0, 0, 0] = 1  # one clean mistake, of class 0
    return ImageSet(images=images, labels=labels, class_names=("a", "b", "c", "d"))


def test_asr_and_ra_count_images_of_other_classes_only() -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, -1, -1] = 1
    trigger = Stamp(mask=mask, pattern=torch.ones(1, 8, 8))
    runtime = Runtime(device="cpu", precision="fp32", threads=1)
    result = evaluate(Corner(), labelled(), runtime, trigger, AllToOne(target=0))
    assert (result.acc.successes, result.acc.trials) == (39, 40)
    assert result.asr == Proportion(30, 30)
    assert result.ra == Proportion(0, 30)


def test_a_trigger_that_changes_no_pixel_is_refused() -> None:
    trigger = Stamp(mask=torch.zeros(1, 8, 8), pattern=torch.ones(1, 8, 8))
    with pytest.raises(InputError, match="changes no pixel"):
        evaluate(Corner(), labelled(), Runtime(device="cpu", threads=1), trigger, AllToOne(target=0))


def test_interval_is_wilsons() -> None:
    share, z = Proportion(37, 50), 1.959963984540054
    p, n = share.value, 50
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert share.low == pytest.approx(middle - half, abs=1e-9)
    assert share.high == pytest.approx(middle + half, abs=1e-9)


def state(acc: int, asr: int) -> Evaluation:
    return Evaluation(acc=Proportion(acc, 100), asr=Proportion(asr, 100), ra=Proportion(0, 100))


def test_der_is_half_for_no_defence_and_falls_with_lost_accuracy() -> None:
    assert defense_effectiveness(state(90, 95), state(90, 95)) == 0.5
    assert defense_effectiveness(state(90, 95), state(90, 5)) == pytest.approx(0.95)
    assert defense_effectiveness(state(90, 95), state(80, 5)) == pytest.approx(0.90)
    assert defense_effectiveness(state(90, 95), state(99, 5)) == pytest.approx(0.95)
