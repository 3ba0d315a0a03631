"""Methods of several stages: a state for each, a share of the budget for each, and an end before the schedule's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.planted import network, pictures, runtime
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Hook, Recipe, Runtime, fit, stage
from unbackdoor.training.resume import states

RECIPE = Recipe(epochs=6, batch_size=16, ema=0.0, augmentation="none", low_resolution=0.0, schedule="constant")


class Ends(Hook):
    """Has had enough after some epochs."""

    def __init__(self, after: int) -> None:
        self.after, self.asked = after, 0

    def finished(self, model: nn.Module) -> bool:
        self.asked += 1
        return self.asked >= self.after


def test_a_hook_can_end_training_before_its_schedule() -> None:
    model, whole = network(0), network(0)
    history = fit(model, pictures(48, 1), RECIPE, runtime(), hook=Ends(2))
    assert history.epochs == len(history.loss) == 2
    longer = fit(whole, pictures(48, 1), RECIPE, runtime(), hook=Ends(9))
    assert longer.epochs == len(longer.loss) == 6
    assert longer.loss[:2] == history.loss


def test_training_that_a_hook_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    model, again = network(0), network(0)
    fit(model, pictures(48, 1), RECIPE, runtime(), hook=Ends(2), resume=tmp_path / "resume.pt")
    hook = Ends(1)
    history = fit(again, pictures(48, 1), RECIPE, runtime(), hook=hook, resume=tmp_path / "resume.pt")
    assert (history.epochs, len(history.loss), hook.asked) == (2, 2, 0)
    assert same_state(state_of(model), state_of(again))


def test_every_stage_has_a_state_of_its_own_and_all_are_found(tmp_path: Path) -> None:
    resume = tmp_path / "resume.pt"
    first = stage(resume, "warm-up")
    assert stage(None, "warm-up") is None
    assert first == tmp_path / "resume-warm-up.pt"
    assert states(resume) == []
    for path in (resume, first, tmp_path / "resumed.pt", tmp_path / "other-warm-up.pt"):
        path.touch()
    assert states(resume) == [resume, first]


def test_a_part_of_a_runtime_has_a_part_of_its_budget_and_the_same_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Runtime(device="cpu", budget=4.0)
    place, threads = whole.place, torch.get_num_threads()

    def measured() -> int:
        raise AssertionError("measured again")

    monkeypatch.setattr("unbackdoor.training.runtime.fastest_threads", measured)
    part = whole.part(0.25)
    assert part.budget == pytest.approx(1.0)
    assert (part.place, torch.get_num_threads()) == (place, threads)
    assert (part.seed, part.precision) == (whole.seed, whole.precision)
    assert Runtime(device="cpu").part(0.25).budget is None
