"""Sink, concentration and activeness are what they are said to be, and a planted target is where answers flee to."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import CLASSES, network, pictures, planted, runtime
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan import TSBDSignals
from unbackdoor.scan import tsbd_signals as module
from unbackdoor.scan.tsbd_signals import activeness, concentration, sink

LAYERS = ["body.0", "body.3", "body.6"]


def test_the_concentration_is_the_share_of_the_most_changed_tenth_the_mean_over_layers() -> None:
    even = torch.ones(20, 3)
    one = torch.zeros(10, 4)
    one[7] = 2.0
    assert concentration([even]) == pytest.approx(0.1)
    assert concentration([one]) == 1.0
    assert concentration([even, one]) == pytest.approx(0.55)
    assert concentration([torch.zeros(10, 4)]) == 0.0


def test_the_sink_counts_images_of_other_classes_only() -> None:
    linear = nn.Linear(12, 3)
    description = network(0).description
    model = Network(nn.Sequential(nn.Flatten(), linear), description)
    images = torch.randint(0, 256, (6, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clean = ImageSet(images=images, labels=torch.tensor([0, 0, 1, 1, 1, 1]), class_names=("a", "b", "c"))
    found = sink(model, clean, runtime())
    answers = model(images.float() / 255).softmax(1).detach()
    expected = [answers[2:, 0].mean(), answers[:2, 1].mean(), answers[:, 2].mean()]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_the_activeness_is_that_of_all_images_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = network(0).eval(), pictures(50, 5)
    loss = F.cross_entropy(model(clean.images.float() / 255), clean.labels)
    weights = [model.get_parameter(f"{name}.weight") for name in LAYERS]
    sizes = [w.norm() * g.norm() for w, g in zip(weights, torch.autograd.grad(loss, weights))]
    expected = math.log(math.sqrt(sum(float(size) ** 2 for size in sizes)))
    monkeypatch.setattr(module, "AT_ONCE", 16)
    assert activeness(model, clean, LAYERS) == pytest.approx(expected, rel=1e-4)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_activeness_does_not_depend_on_how_long_weights_before_a_normalisation_are() -> None:
    model, clean = network(0).eval(), pictures(50, 5)
    longer = copy.deepcopy(model)
    with torch.no_grad():
        longer.body[3].weight.mul_(5.0)
        longer.body[4].running_mean.mul_(5.0)
        longer.body[4].running_var.mul_(25.0)
    images = clean.images.float() / 255
    torch.testing.assert_close(longer(images), model(images), rtol=1e-2, atol=1e-3)
    assert activeness(longer, clean, LAYERS) == pytest.approx(activeness(model, clean, LAYERS), abs=0.02)


def test_unlearning_ends_at_chance_and_a_schedule_that_is_too_short_is_no_budget_s_fault() -> None:
    models = planted(1)
    found = TSBDSignals(epochs=30, learning_rate=1e-2).scan(models.suspect, models.data, runtime())
    assert found.evidence["unlearning_epochs"] < 30
    assert not found.shortened
    short = TSBDSignals(epochs=1, learning_rate=1e-6).scan(models.twin, models.data, runtime())
    assert short.evidence["unlearning_epochs"] == 1
    assert not short.shortened


def test_a_budget_that_ends_unlearning_is_told_of() -> None:
    models = planted(1)
    run = replace(runtime(), budget=1e-6)
    found = TSBDSignals(epochs=50, learning_rate=1e-6).scan(models.twin, models.data, run)
    assert found.shortened


def test_no_more_images_are_unlearned_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = module.unlearned

    def watched(model: Network, samples: ImageSet, *rest: object, **more: object) -> object:
        seen.append(len(samples))
        return original(model, samples, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "unlearned", watched)
    TSBDSignals(epochs=1, most_images=30).scan(network(0), DefenderData(clean=pictures(60, 5)), runtime())
    TSBDSignals(epochs=1, most_images=300).scan(network(0), DefenderData(clean=pictures(60, 5)), runtime())
    assert seen == [30, 60]


def test_unlearning_is_in_float32_whatever_the_precision() -> None:
    models = planted(1)
    exact, mixed = (
        TSBDSignals(epochs=3, learning_rate=1e-3).scan(models.suspect, models.data, one)
        for one in (runtime(), replace(runtime(), precision="bf16"))
    )
    assert mixed.evidence == exact.evidence
    assert exact.evidence["concentration"] > 0


def test_one_image_cannot_be_unlearned() -> None:
    with pytest.raises(InputError, match="2 clean samples or more"):
        TSBDSignals(most_images=1)
    with pytest.raises(InputError, match="epochs"):
        TSBDSignals(epochs=0)


def test_there_is_an_anomaly_for_every_class() -> None:
    models = planted(1)
    found = TSBDSignals(epochs=2).scan(models.suspect, models.data, runtime())
    assert len(found.anomaly) == CLASSES
    assert {"concentration", "activeness"} <= set(found.evidence)


@pytest.mark.parametrize("seed", [1, 2, 4, 8])
def test_answers_flee_to_a_planted_target_and_gradients_are_larger_than_the_twins(seed: int) -> None:
    models = planted(seed)
    found, twin = (
        TSBDSignals(learning_rate=1e-4).scan(one, models.data, runtime(seed)) for one in (models.suspect, models.twin)
    )
    assert int(found.anomaly.argmax()) == models.target
    assert float(found.anomaly.max()) > max(3.0, 1.5 * float(twin.anomaly.max()))
    assert found.evidence["activeness"] > twin.evidence["activeness"] + 0.5


def test_a_little_more_than_nothing_is_no_outlier(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where most classes get no probability at all their spread is 0, and a hair would be any number of spreads."""
    models = planted(1)
    sinks = torch.full((models.data.need_clean("test").classes,), 1e-9)
    sinks[3] = 1.2e-6
    monkeypatch.setattr("unbackdoor.scan.tsbd_signals.sink", lambda *_: sinks)
    found = TSBDSignals(epochs=1).scan(models.twin, models.data, runtime())
    assert not found.backdoored
    assert float(found.anomaly[3]) == pytest.approx(math.log(1.2) / 0.1, rel=1e-3)
