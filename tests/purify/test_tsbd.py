"""TSBD resets neurons by what clean unlearning changes, chooses how many by clean samples, and fine-tunes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.planted import CLASSES, network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.purify.test_ft import Nothing
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import TSBD
from unbackdoor.purify import tsbd as module
from unbackdoor.purify.choice import least_accuracy
from unbackdoor.purify.tsbd import _AgainstActiveNeurons, ascent
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime

SHORT = TSBD(unlearning_epochs=3, unlearning_rate=1e-3, epochs=3, batch_size=12, augmentation="none")


@pytest.fixture(autouse=True)
def _epochs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few the images."""
    monkeypatch.setattr(module, "STEPS", 1)


def test_the_step_up_has_the_radius_in_each_tensor_by_itself() -> None:
    gradients = [torch.tensor([3.0, 4.0]), torch.full((2, 2), 1e-15), torch.zeros(3)]
    first, second, dead = ascent(gradients, 0.05)
    assert first.tolist() == pytest.approx([0.03, 0.04])
    assert float(second.norm()) == pytest.approx(0.05, rel=1e-3)
    # The published code divides 0 by 0 here.
    assert dead.tolist() == [0.0] * 3


class Curved(nn.Module):
    """Two tensors whose loss, the logits' cross-entropy, bends: w and the square of v scale two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor([0.3, -0.2])), nn.Parameter(torch.tensor([0.5]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean((1, 2, 3))
        return torch.stack([self.w[0] * bright, self.w[1] * bright.square() + self.v[0] ** 2], 1)


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_a_step_descends_along_the_mixed_gradient(alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    images, targets = torch.rand(8, 3, 4, 4, generator=generator), torch.tensor([0, 1] * 4)
    model = Curved()

    def gradients(at: Curved) -> list[torch.Tensor]:
        loss = nn.functional.cross_entropy(at(images), targets)
        return list(torch.autograd.grad(loss, list(at.parameters())))

    first = gradients(model)
    further = copy.deepcopy(model)
    for parameter, gradient in zip(further.parameters(), first):
        parameter.data += 0.05 * gradient / gradient.norm()
    expected = [
        parameter.detach() - 0.1 * ((1 - alpha) * g1 + alpha * g2)
        for parameter, g1, g2 in zip(model.parameters(), first, gradients(further))
    ]
    hook = _AgainstActiveNeurons(0.05, alpha)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    batch = Batch(images=images, targets=targets, rows=torch.arange(8))
    hook.update(model, batch, torch.optim.SGD(model.parameters(), 0.1))
    for parameter, value in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-6, rtol=1e-5)


def test_running_statistics_move_once_a_step_and_a_dead_layer_gives_numbers() -> None:
    model, plain = network(0), network(0)
    for one in (model, plain):
        one.get_parameter("body.3.weight").data.zero_()
        one.get_parameter("body.4.weight").data.zero_()
    clean = pictures(16, 3)
    batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(16))
    hook = _AgainstActiveNeurons(0.05, 0.7)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    hook.update(model.train(), batch, torch.optim.SGD(model.parameters(), 0.1))
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    plain.train()(batch.images)
    for name, value in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), value)


def test_a_model_that_guesses_does_not_keep_enough_accuracy_with_any_number_of_classes() -> None:
    assert least_accuracy(0.5, 0.9, 10) == pytest.approx(0.45)
    assert least_accuracy(0.5, 0.98, 2) == pytest.approx(0.62)
    for classes in (2, 3, 10, 200):
        for before in (1.2 / classes, 0.5 + 0.5 / classes, 1.0):
            assert 1 / classes < least_accuracy(0.5, before, classes) < before


def test_the_share_of_neurons_is_chosen_on_clean_samples_and_the_whole_curve_is_kept() -> None:
    models = planted(1)
    _, history = SHORT.purify(models.suspect, models.data, runtime())
    (sweep,) = history.sweeps
    assert sweep.values == (0.0, *SHORT.neurons)
    assert len(sweep.accuracy) == len(sweep.values)
    floor = least_accuracy(SHORT.keeps, sweep.accuracy[0], CLASSES)
    last = sweep.values.index(sweep.chosen)
    assert last > 1, "otherwise this test sees no choice"
    assert min(sweep.accuracy[: last + 1]) >= floor
    assert last + 1 == len(sweep.values) or sweep.accuracy[last + 1] < floor
    assert f"{100 * sweep.chosen:g} % of the neurons" in history.notes[-1]


@pytest.mark.parametrize(
    ("keeps", "accuracy", "chosen"),
    [
        (0.5, (0.8, 0.8, 0.5, 0.3), 0.2),
        (0.5, (0.8, 0.3, 0.8, 0.8), 0.1),
        (0.0, (0.8, 0.3, 0.2, 0.2), 0.3),
        # Never worse than guessing.
        (0.0, (0.8, 0.3, 0.1, 0.1), 0.1),
        (1.0, (0.8, 0.8, 0.8, 0.8), 0.3),
        (1.0, (0.8, 0.7, 0.7, 0.7), 0.1),
    ],
)
def test_the_largest_share_before_accuracy_falls_below_the_floor_is_chosen(
    keeps: float, accuracy: tuple[float, ...], chosen: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter(accuracy)
    monkeypatch.setattr(module, "accuracy_on", lambda *_: next(given))
    method = replace(SHORT, neurons=(0.1, 0.2, 0.3), keeps=keeps, epochs=1, unlearning_epochs=1)
    _, history = method.purify(network(0), DefenderData(clean=pictures(24, 3)), runtime())
    assert history.sweeps[0].chosen == chosen
    assert f"of {100 * chosen:g} % of the neurons" in history.notes[-1]


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_weakened_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = TSBD(unlearning_rate=1e-3, unlearning_epochs=30, epochs=15, batch_size=24, augmentation="crop")
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.3
    assert after.acc.value > 0.93
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_clean_twin_keeps_its_accuracy() -> None:
    models = planted(1)
    method = TSBD(unlearning_rate=1e-3, unlearning_epochs=30, epochs=12, batch_size=24, augmentation="crop")
    repaired, _ = method.purify(models.twin, models.data, runtime())
    assert evaluate(repaired, models.test, runtime()).acc.value > 0.95


def test_unlearning_is_in_float32_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the neurons is that of small differences between weights."""
    found: list[list[torch.Tensor]] = []
    changes = module.weight_changes

    def noted(before: nn.Module, after: nn.Module, names: list[str]) -> list[torch.Tensor]:
        found.append(changes(before, after, names))
        return found[-1]

    monkeypatch.setattr(module, "weight_changes", noted)
    for one in (runtime(), Runtime(device="cpu", precision="bf16", threads=1)):
        SHORT.purify(planted(1).suspect, DefenderData(clean=pictures(30, 3)), one)
    exact, mixed = found
    assert all(torch.equal(one, other) for one, other in zip(exact, mixed))
    assert max(float(one.max()) for one in exact) > 0


@pytest.mark.parametrize("where", ["TSBD's unlearning", "TSBD"])
def test_an_interrupted_repair_goes_on_in_either_stage(where: str, tmp_path: Path) -> None:
    suspect, path, data = planted(1).suspect, tmp_path / "resume.pt", DefenderData(clean=pictures(30, 3))
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 4))
    with pytest.raises(KeyboardInterrupt):
        SHORT.purify(suspect, data, stopping, resume=path)
    assert path.exists() == (where == "TSBD")
    again, history = SHORT.purify(suspect, data, runtime(), resume=path)
    whole, expected = SHORT.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


@pytest.mark.parametrize(("rows", "epochs"), [(120, 3), (60, 6), (30, 10), (12, 30), (5, 30)])
def test_few_images_are_seen_more_often_so_that_the_reset_can_heal(
    rows: int, epochs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of twelve; three epochs of ten."""
    monkeypatch.undo()
    assert math.ceil(SHORT.epochs * module.healing_factor(rows, SHORT.batch_size)) == epochs
    if rows == 30:
        _, history = SHORT.purify(planted(1).suspect, DefenderData(clean=pictures(rows, 3)), runtime())
        assert history.epochs == epochs


def test_defaults_are_those_of_the_published_code() -> None:
    expected = TSBD(
        unlearning_epochs=1000,
        unlearning_rate=1e-4,
        neurons=(0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 0.9),
        weights=0.7,
        epochs=21,
        batch_size=256,
        learning_rate=0.01,
        radius=0.05,
        alpha=0.7,
        augmentation="crop-flip",
    )
    assert TSBD() == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unlearning_epochs": 0}, "unlearning takes 1 epoch or more, found 0"),
        ({"neurons": ()}, "shares of neurons lie above 0"),
        ({"neurons": (0.0, 0.5)}, "shares of neurons lie above 0"),
        ({"neurons": (0.5, 0.1)}, "in ascending order"),
        ({"weights": 0.0}, "the share of weights must be above 0"),
        ({"keeps": 1.5}, "the share of accuracy that is kept must lie between 0 and 1"),
        ({"alpha": float("nan")}, "alpha must lie between 0 and 1"),
        ({"radius": 0.0}, "the radius must be a positive number"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TSBD(**options)  # type: ignore[arg-type]


def test_a_network_without_neurons_is_refused_before_any_training(tmp_path: Path) -> None:
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, CLASSES)), network(0).description)
    with pytest.raises(InputError, match="neurons are outputs of convolutions"):
        TSBD().purify(flat, DefenderData(clean=pictures(24, 3)), runtime(), resume=tmp_path / "resume.pt")
    assert list(tmp_path.iterdir()) == []
