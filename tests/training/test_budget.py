"""A budget shortens schedules by arithmetic, and leaves no other trace."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.planted import network, pictures, runtime
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Hook, Recipe, Runtime, affordable, fit
from unbackdoor.training import budget as module


class Clock:
    """A clock that moves only when a step is done."""

    def __init__(self) -> None:
        self.now = 0.0
        self.steps = 0

    def perf_counter(self) -> float:
        return self.now

    def step_of(self, *seconds: float) -> object:
        self.now += seconds[self.steps % len(seconds)]
        self.steps += 1
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def _with(minutes: float | None) -> Runtime:
    return Runtime(device="cpu", precision="fp32", threads=1, budget=minutes)


def test_without_a_budget_all_rounds_are_affordable_and_nothing_is_timed(clock: Clock) -> None:
    assert affordable(7, 3, lambda: clock.step_of(1.0), _with(None)) == 7
    assert clock.steps == 0


@pytest.mark.parametrize(
    ("minutes", "seconds", "steps", "rounds", "expected"),
    [
        (1.0, 1.0, 10, 100, 5),  # (60 s - 5 s of timing) / (10 steps of 1 s)
        (1.0, 1.0, 7, 100, 7),  # 7.86 rounds are 7
        (10.0, 0.5, 4, 30, 30),  # 298 would fit, 30 are asked for
        (0.01, 5.0, 100, 30, 1),  # not even one fits
    ],
)
def test_rounds_are_what_fits_at_least_one_at_most_all(
    clock: Clock, minutes: float, seconds: float, steps: int, rounds: int, expected: int
) -> None:
    assert affordable(rounds, steps, lambda: clock.step_of(seconds), _with(minutes)) == expected


def test_a_slow_first_step_does_not_count(clock: Clock) -> None:
    """It is no typical one; the time that it took is gone all the same."""
    assert affordable(100, 10, lambda: clock.step_of(50.0, 1.0, 1.0, 1.0, 1.0), _with(2.0)) == 6


def test_what_timing_and_preparation_take_is_not_spent_twice(clock: Clock) -> None:
    """Preparation of 10 s is done for the timing and again for the run: 60 - 2 * 10 - 5 = 35 s are 3 rounds of 10 s."""

    def prepare() -> None:
        clock.now += 10.0

    assert affordable(100, 10, lambda: clock.step_of(1.0), _with(1.0), prepare) == 3


def test_a_budget_that_the_timing_uses_up_is_one_round(clock: Clock) -> None:
    assert affordable(100, 1, lambda: clock.step_of(1.0), _with(4 / 60)) == 1


def test_an_infinite_budget_is_no_budget(clock: Clock) -> None:
    assert affordable(7, 3, lambda: clock.step_of(1.0), _with(float("inf"))) == 7


class Slow(Hook):
    """One second a step, on a clock that only it moves."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def __deepcopy__(self, memo: object) -> Slow:
        return Slow(self.clock)

    def loss(self, model: torch.nn.Module, batch: object) -> torch.Tensor:
        self.clock.step_of(1.0)
        return super().loss(model, batch)  # type: ignore[arg-type]


RECIPE = {"batch_size": 16, "learning_rate": 0.05, "low_resolution": 0.5}


def test_a_budget_shortens_training_and_the_timing_leaves_no_trace(clock: Clock) -> None:
    data = pictures(48, 0)  # 3 steps an epoch: of 14 s 5 go to timing, 9 are 3 epochs
    short, reference = network(0), network(0)
    history = fit(short, data, Recipe(epochs=20, **RECIPE), _with(14 / 60), hook=Slow(clock))
    expected = fit(reference, data, Recipe(epochs=3, **RECIPE), runtime(), hook=Slow(clock))
    assert history.epochs == len(history.loss) == 3
    assert history.loss == expected.loss
    # Schedule and low-resolution epochs are those of the shortened run.
    assert same_state(state_of(short), state_of(reference))


def test_training_never_gets_less_than_one_epoch(clock: Clock) -> None:
    history = fit(network(0), pictures(48, 0), Recipe(epochs=20, **RECIPE), _with(1e-6), hook=Slow(clock))
    assert history.epochs == len(history.loss) == 1
