"""BNP compares running statistics with those of clean samples, and prunes what differs most."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from torch import Tensor, nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.test_channels import described
from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import BNP
from unbackdoor.purify import bnp as module
from unbackdoor.purify.bnp import clean_statistics, divergence
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.testing.samples import hooks_on, same_state, state_of


def layer_with(means: list[float], variances: list[float]) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(len(means), eps=0.0)
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.copy_(torch.tensor(means))
    layer.running_var.copy_(torch.tensor(variances))
    return layer


def test_the_divergence_is_the_integral_of_clean_against_running() -> None:
    layer = layer_with([0.0, 0.5, -1.0], [1.0, 4.0, 0.25])
    means, variances = [0.0, -0.5, -0.8], [1.0, 0.5, 1.0]
    found = divergence(layer, torch.tensor(means), torch.tensor(variances))
    running = [(0.0, 1.0), (0.5, 2.0), (-1.0, 0.5)]
    for value, mean, variance, (other, spread) in zip(found.tolist(), means, variances, running):
        clean = norm(mean, np.sqrt(variance))

        def integrand(x: float, clean: object = clean, other: float = other, spread: float = spread) -> float:
            ratio = clean.logpdf(x) - norm.logpdf(x, other, spread)  # type: ignore[attr-defined]
            return float(clean.pdf(x) * ratio)  # type: ignore[attr-defined]

        assert value == pytest.approx(quad(integrand, -12, 12)[0], abs=1e-6)
    assert found[0] == 0, "none where nothing differs"


def test_it_is_not_twice_the_logarithm_as_in_backdoorbench() -> None:
    found = divergence(layer_with([0.0], [4.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    assert float(found) == pytest.approx(np.log(2) + 1 / 8 - 0.5)


@pytest.mark.parametrize("batch", [500, 7])
def test_statistics_are_those_of_all_images_and_positions_in_evaluation_mode(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    models, clean = planted(1), pictures(30, 3)
    model = copy.deepcopy(models.suspect).train()
    before = state_of(model)
    layers = list(norm_layers(model, "Test").values())
    found = clean_statistics(model, layers, clean.images, runtime())
    assert hooks_on(model) == 0
    assert same_state(before, state_of(model)), "running statistics stay"
    features: Tensor = models.suspect.normalize(clean.images.float() / 255)
    for number, part in enumerate(models.suspect.body):  # type: ignore[arg-type, var-annotated]
        if number in (1, 4, 7):
            mean, variance = found[layers[number // 3]]
            values = features.detach().double().transpose(0, 1).flatten(1)
            torch.testing.assert_close(mean, values.mean(1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(variance, values.var(1), rtol=1e-5, atol=1e-6)
        features = part(features)


def by_hand(model: Network, clean: Tensor) -> list[Tensor]:
    """Return the outlying of each channel: its K in standard deviations above the mean of its layer."""
    copied = copy.deepcopy(model)
    layers = list(norm_layers(copied, "Test").values())
    scores = []
    for layer in layers:
        mean, variance = clean_statistics(copied, layers, clean, runtime())[layer]
        k = divergence(layer, mean, variance)
        scores.append((k - k.mean()) / k.std())
    return scores


@pytest.mark.parametrize("u", [1.0, 2.5])
def test_channels_far_above_their_layer_lose_their_weight_and_keep_their_bias(u: float) -> None:
    models = planted(1)
    clean = models.data.need_clean("Test")
    repaired, history = BNP(u=u, choose=False).purify(models.suspect, models.data, runtime())
    expected, gone = state_of(models.suspect), 0
    for number, score in zip((1, 4, 7), by_hand(models.suspect, clean.images)):
        expected[f"body.{number}.weight"][score > u] = 0
        gone += int((score > u).sum())
    assert gone > 0
    assert same_state(state_of(repaired), expected)
    assert history.notes == (f"BNP switched off {gone} of 60 channels of batch normalization.",)
    assert (history.epochs, history.sweeps) == (0, ())


def test_u_is_chosen_by_samples_that_the_statistics_are_not_of() -> None:
    models = planted(2)
    kept, held = hold_out(models.data.need_clean("Test"), 0)
    repaired, history = BNP(u=9.0).purify(models.suspect, models.data, runtime())
    (sweep,) = history.sweeps
    for number, score in zip((1, 4, 7), by_hand(models.suspect, kept.images)):
        off = repaired.state_dict()[f"body.{number}.weight"] == 0
        assert torch.equal(off, score > sweep.chosen)
    assert sweep.accuracy[-1] == accuracy_on(models.suspect, held, runtime())
    assert sweep.accuracy[sweep.values.index(sweep.chosen)] == accuracy_on(repaired, held, runtime())


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_planted_backdoor_is_pruned_and_a_clean_twin_keeps_its_accuracy(seed: int) -> None:
    models = planted(seed)
    repaired, history = BNP().purify(models.suspect, models.data, runtime(seed))
    twin, _ = BNP().purify(models.twin, models.data, runtime(seed))
    before, after, unharmed = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, twin)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.94
    assert unharmed.acc.value > 0.94
    assert "held-out clean samples" in history.sweeps[0].rule


@pytest.mark.parametrize("dead", ["in training", "on clean samples", "in both"])
def test_dead_channels_give_numbers(dead: str) -> None:
    model = network(0)
    with torch.no_grad():
        if dead != "on clean samples":
            model.body[1].running_var[:2] = 0  # type: ignore[index]
        if dead != "in training":
            model.body[0].weight[:2] = 0  # type: ignore[index]
    repaired, history = BNP().purify(model, DefenderData(clean=pictures(24, 3)), runtime())
    assert all(bool(value.isfinite().all()) for value in state_of(repaired).values())
    assert all(np.isfinite(history.sweeps[0].values))


def test_one_image_of_one_pixel_is_enough_for_numbers() -> None:
    body = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 2))
    model = described(body, (3, 1, 1))
    layers = list(norm_layers(model, "Test").values())
    images = torch.full((1, 3, 1, 1), 100, dtype=torch.uint8)
    mean, variance = clean_statistics(model, layers, images, runtime())[layers[0]]
    assert mean.tolist() == pytest.approx([100 / 255] * 3)
    assert variance.tolist() == pytest.approx([0.0] * 3, abs=1e-7)


def test_layers_that_are_not_run_are_left_alone_or_refused() -> None:
    class Unused(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.unused = body, nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)  # type: ignore[no-any-return]

    model = network(0)
    model.body = Unused(model.body)
    data = DefenderData(clean=pictures(24, 3))
    _, history = BNP().purify(model, data, runtime())
    assert "of 60 channels" in history.notes[0]
    model.body = Unused(nn.Sequential(nn.Flatten(), nn.Linear(432, 8)))
    with pytest.raises(InputError, match="none of the network's batch normalization is run"):
        BNP().purify(model, data, runtime())


def test_what_it_cannot_prune_is_refused() -> None:
    model = network(0)
    model.body = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten(), nn.Linear(432, 8))
    with pytest.raises(InputError, match="with running statistics, and this network has none"):
        BNP().purify(model, DefenderData(clean=pictures(24, 3)), runtime())
    with pytest.raises(InputError, match=r"BNP needs clean samples.*--clean"):
        BNP().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize("options", [{"u": -1.0}, {"u": float("nan")}, {"allowance": -0.1}, {"allowance": 1.5}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"^BNP: (u must|the allowance)"):
        BNP(**options)  # type: ignore[arg-type]
