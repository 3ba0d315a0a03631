"""The learning-rate schedules have the values of their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from unbackdoor.errors import InputError
from unbackdoor.training.schedule import SCHEDULES, constant, cosine, one_cycle, schedule_named


def test_one_cycle_has_the_values_computed_by_hand() -> None:
    # Positions are the middles of the steps: 1/16, 3/16, 5/16, ...; the peak is at 1/4.
    expected = [1 / 4, 3 / 4, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12]
    assert [one_cycle(step, 8) for step in range(8)] == pytest.approx(expected)


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100, 1001])
def test_one_cycle_rises_for_a_quarter_then_falls_and_is_never_zero(steps: int) -> None:
    values = [one_cycle(step, steps) for step in range(steps)]
    top = values.index(max(values))
    assert abs((top + 0.5) / steps - 0.25) <= max(1 / steps, 0.25)
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert all(0 < value <= 1 for value in values)


def test_cosine_falls_from_one_to_zero_along_half_a_cosine() -> None:
    assert [cosine(step, 4) for step in range(5)] == pytest.approx(
        [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4, 0]
    )


def test_cosine_with_a_half_period_swings_as_torch_s_scheduler_stepped_once_a_batch() -> None:
    parameter = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([parameter], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for step in range(450):
        # How many steps are planned must not matter.
        for planned in (1, 450, 5000):
            rate = 0.01 * schedule_named("cosine:100", planned)(step, planned)
            assert rate == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        scheduler.step()
    assert [schedule_named("cosine:100", 7)(step, 7) for step in (0, 100, 200)] == pytest.approx((1, 0, 1))


@pytest.mark.parametrize(
    ("steps", "falls"),
    [(1, 1), (70, 1), (100, 1), (199, 1), (201, 3), (270, 3), (300, 3), (399, 3), (401, 5), (990, 9)],
)
def test_a_shortened_swing_ends_at_the_bottom_after_the_nearest_number_of_falls(steps: int, falls: int) -> None:
    rate = schedule_named("cosine:100", 1000)
    expected = [(1 + math.cos(math.pi * falls * step / steps)) / 2 for step in range(steps + 1)]
    assert [rate(step, steps) for step in range(steps + 1)] == pytest.approx(expected, abs=1e-9)
    assert expected[-1] == pytest.approx(0, abs=1e-9)


def test_constant_stays() -> None:
    assert {constant(step, 10) for step in range(10)} == {1.0}


def test_names_lead_to_their_schedules() -> None:
    assert {name: schedule_named(name, 10) for name in SCHEDULES} == {
        "one-cycle": one_cycle,
        "cosine": cosine,
        "constant": constant,
    }


@pytest.mark.parametrize(
    "name",
    [
        *("", "step", "cosine:", "cosine:0", "cosine:-1", "cosine:ten", "cosine:1.5", "one-cycle:100", "constant:5"),
        "cosine:²",  # str.isdigit accepts it, int does not
        pytest.param("cosine:" + "9" * 5000, id="more digits than int reads"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="one-cycle, cosine, constant, cosine:STEPS"):
        schedule_named(name, 10)
