"""How far a repair goes is chosen by clean samples: the furthest value before the accuracy falls."""

from __future__ import annotations

import pytest
import torch

from tests.planted import network, pictures, runtime
from unbackdoor.purify.choice import accuracy_on, furthest


@pytest.mark.parametrize(
    ("accuracy", "chosen"),
    [
        ((0.9, 0.9, 0.8, 0.2), 2.0),
        ((0.9, 0.9, 0.9, 0.9), 3.0),
        # What comes after a fall is luck.
        ((0.9, 0.5, 0.9, 0.9), 0.0),
        ((0.1, 0.1, 0.9, 0.9), 0.0),
        ((0.9, 0.8, 0.8, 0.79), 2.0),
    ],
)
def test_the_furthest_value_before_the_first_fall_is_chosen(accuracy: tuple[float, ...], chosen: float) -> None:
    sweep = furthest("share", (0.0, 1.0, 2.0, 3.0), accuracy, 0.8)
    assert sweep.chosen == chosen
    assert sweep.accuracy == accuracy
    assert "80.0 %" in sweep.rule


def test_the_accuracy_is_that_of_a_plain_count_and_leaves_the_mode() -> None:
    model, held = network(0).train(), pictures(40, 3)
    found = accuracy_on(model, held, runtime())
    assert model.training
    with torch.no_grad():
        guesses = model.eval()(held.images.float() / 255).argmax(1)
    assert found == pytest.approx(sum(int(a == b) for a, b in zip(guesses, held.labels)) / 40)
