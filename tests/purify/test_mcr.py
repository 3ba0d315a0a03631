"""MCR trains a curve between suspect and fine-tuned copy, and chooses a point of it by held-out clean samples."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.purify.test_ft import Nothing
from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.purify import FT, MCR
from unbackdoor.purify import mcr as module
from unbackdoor.purify.mcr import _Curve, _Position, bezier, middle_most, put
from unbackdoor.purify.statistics import renew_statistics
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime, fit

POSITIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0])
def test_the_curve_equals_two_rounds_of_straight_lines(t: float) -> None:
    """De Casteljau's construction, which is another way to write a quadratic Bezier curve."""
    a, b, c = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    one, two = (1 - t) * a + t * b, (1 - t) * b + t * c
    (found,) = bezier([a], [b], [c], torch.tensor(t))
    torch.testing.assert_close(found, (1 - t) * one + t * two)


@pytest.mark.parametrize(
    ("accuracy", "chosen"),
    [
        ([0.9] * 11, 0.5),
        # Everything but the surroundings of the ends has fallen.
        ([0.9, 0.9, 0.9, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9], 0.2),
        # Of two as near, the later: it is further from the suspect.
        ([0.9, 0.9, 0.9, 0.9, 0.89, 0.8, 0.89, 0.9, 0.9, 0.9, 0.9], 0.6),
        # The ends are no measure, and never chosen.
        ([1.0, 0.6, 0.6, 0.6, 0.6, 0.59, 0.6, 0.6, 0.6, 0.6, 1.0], 0.5),
        ([0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.9], 0.9),
        # 2 points exactly are allowed, whatever the last digit says.
        ([0.9, 0.9, 0.9, 0.9, 0.9, 0.9 - 0.02, 0.9, 0.9, 0.9, 0.9, 0.9], 0.5),
    ],
)
def test_the_point_nearest_the_middle_that_is_accurate_enough_is_chosen(accuracy: list[float], chosen: float) -> None:
    sweep = middle_most(POSITIONS, accuracy, 0.02)
    assert (sweep.chosen, sweep.values, sweep.accuracy) == (chosen, POSITIONS, tuple(accuracy))
    assert "at most 2 points" in sweep.rule


def ends() -> tuple[nn.Module, nn.Module]:
    return network(0), network(1)


def test_the_curve_leads_from_one_model_to_the_other() -> None:
    start, end = ends()
    images = pictures(8, 3).images.float() / 255
    # The models' own statistics differ from those of the curve, so each batch's are used.
    expected = [copy.deepcopy(model).train()(images) for model in (start, end)]
    curve = _Curve(start, end).train()
    for position, logits in zip((0.0, 1.0), expected):
        curve.position.fill_(position)
        torch.testing.assert_close(curve(images), logits)
    curve.position.fill_(0.5)
    assert not torch.allclose(curve(images), expected[0], atol=1e-3)


def test_the_curve_begins_as_a_straight_line() -> None:
    start, end = ends()
    curve = _Curve(start, end)
    for a, b, found in zip(start.parameters(), end.parameters(), curve.at(torch.tensor(0.3))):
        torch.testing.assert_close(found, 0.7 * a + 0.3 * b)


@pytest.mark.parametrize("t", [0.2, 0.5, 0.9])
def test_only_the_bend_has_a_gradient_and_it_is_its_share_of_that_of_the_point(t: float) -> None:
    clean = pictures(16, 3)
    images = clean.images.float() / 255
    start, end = ends()
    point = copy.deepcopy(start).train()
    curve = _Curve(start, end).train()
    put(point, curve.at(torch.tensor(t)))
    curve.position.fill_(t)
    F.cross_entropy(curve(images), clean.labels).backward()
    F.cross_entropy(point(images), clean.labels).backward()
    for bend, plain in zip(curve.bend, point.parameters()):
        assert bend.grad is not None
        assert plain.grad is not None
        torch.testing.assert_close(bend.grad, 2 * t * (1 - t) * plain.grad, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for p in (*curve.start.parameters(), *curve.end))
    assert {id(p) for p in curve.parameters() if p.requires_grad} == {id(p) for p in curve.bend}


def test_training_moves_the_bend_and_neither_end() -> None:
    start, end = ends()
    curve = _Curve(start, end)
    before = [[p.detach().clone() for p in part] for part in (start.parameters(), curve.end, curve.bend)]
    recipe = Recipe(epochs=2, batch_size=12, ema=0.0, low_resolution=0.0)
    fit(curve, pictures(24, 3), recipe, runtime(), hook=_Position())
    for part, old, moves in zip((start.parameters(), curve.end, curve.bend), before, (False, False, True)):
        assert all(torch.equal(a, b) != moves for a, b in zip(part, old))


def test_positions_are_drawn_anew_for_each_step_all_along_the_curve() -> None:
    curve, hook = _Curve(*ends()), _Position()
    hook.begin(curve, Recipe(), runtime())
    generator = torch.Generator().manual_seed(0)
    batch = Batch(images=torch.rand(2, 3, 12, 12), targets=torch.zeros(2, dtype=torch.long), rows=torch.arange(2))
    found = []
    for _ in range(200):
        assert hook.batch(curve, batch, generator) is batch
        found.append(float(curve.position))
    values = torch.tensor(found).sort().values
    assert float((values - (torch.arange(200) + 0.5) / 200).abs().max()) < 0.1, "uniform between 0 and 1"


SHORT = MCR(end_epochs=2, epochs=2, batch_size=12)


def test_the_end_is_fine_tuned_on_what_is_not_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[_Curve] = []

    class Noted(_Curve):
        def __init__(self, start: nn.Module, end: nn.Module) -> None:
            super().__init__(start, end)
            made.append(self)

    monkeypatch.setattr(module, "_Curve", Noted)
    suspect, clean = network(0), pictures(30, 3)
    # In whole batches without crops, as the end has draws of its own.
    whole = replace(SHORT, batch_size=30, augmentation="none")
    whole.purify(suspect, DefenderData(clean=clean), runtime())
    kept, _ = hold_out(clean, 0)
    options = {"epochs": whole.end_epochs, "batch_size": 30, "augmentation": "none"}
    tuned, _ = FT(**options).purify(suspect, DefenderData(clean=kept), runtime())
    for ours, theirs in zip(made[0].end, tuned.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert not all(torch.equal(a, b) for a, b in zip(made[0].end, suspect.parameters()))


def test_held_out_images_decide_nothing_but_the_position() -> None:
    suspect, clean = planted(1).suspect, pictures(40, 3)
    _, held = hold_out(clean, 0)
    spoiled = clean.images.clone()
    for image in held.images:
        spoiled[(clean.images == image).flatten(1).all(1)] = 0
    method = replace(SHORT, allowance=1.0)
    results = [
        method.purify(suspect, DefenderData(clean=replace(clean, images=images)), runtime())
        for images in (clean.images, spoiled)
    ]
    assert [history.sweeps[0].chosen for _, history in results] == [0.5, 0.5]
    assert results[0][1].sweeps != results[1][1].sweeps
    assert same_state(state_of(results[0][0]), state_of(results[1][0]))


def test_the_result_is_the_chosen_point_with_statistics_of_its_own() -> None:
    suspect, clean = planted(1).suspect, pictures(60, 3)
    repaired, history = SHORT.purify(suspect, DefenderData(clean=clean), runtime())
    (sweep,) = history.sweeps
    kept, held = hold_out(clean, 0)
    position = sweep.values.index(sweep.chosen)
    answers = repaired(held.images.float() / 255).argmax(1)
    assert float((answers == held.labels).float().mean()) == pytest.approx(sweep.accuracy[position])
    before = state_of(repaired)
    renew_statistics(repaired, kept.images, runtime())
    assert same_state(before, state_of(repaired))
    assert all(p.requires_grad for p in repaired.parameters())


def test_defaults_are_those_of_the_authors_program() -> None:
    expected = MCR(
        end_epochs=100, epochs=100, batch_size=128, learning_rate=0.01, allowance=0.02, augmentation="crop-flip"
    )
    assert MCR() == expected


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_weakened_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = MCR(end_epochs=20, epochs=20, batch_size=16, learning_rate=0.05, augmentation="crop")
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.3
    assert after.acc.value > 0.95
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_clean_twin_keeps_its_accuracy() -> None:
    models = planted(1)
    method = MCR(end_epochs=5, epochs=5, batch_size=16, augmentation="crop")
    repaired, _ = method.purify(models.twin, models.data, runtime())
    assert evaluate(repaired, models.test, runtime()).acc.value > 0.97


@pytest.mark.parametrize("where", ["MCR's end", "MCR"])
def test_an_interrupted_repair_goes_on_in_either_stage(where: str, tmp_path: Path) -> None:
    suspect, path, data = network(0), tmp_path / "resume.pt", DefenderData(clean=pictures(30, 3))
    method = MCR(end_epochs=3, epochs=3, batch_size=12)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    assert path.exists() == (where == "MCR")
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again, history = method.purify(suspect, data, going, resume=path)
    assert progress.totals == ([2, 6] if where == "MCR's end" else [0, 2]), "finished epochs are not done again"
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"MCR needs clean samples.*--clean"):
        MCR().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize("options", [{"end_epochs": 0}, {"allowance": -0.1}, {"allowance": float("nan")}], ids=str)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^MCR: .* found "):
        MCR(**options)
