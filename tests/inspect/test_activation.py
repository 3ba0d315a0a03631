"""Activations of neurons, against figures computed by hand."""

from __future__ import annotations

import pytest
import torch

from tests.inspect.known import material
from tests.planted import planted, runtime
from unbackdoor.inspect import Activation, Figure
from unbackdoor.inspect.activation import measured_features
from unbackdoor.inspect.agreement import gini
from unbackdoor.inspect.compared import features_of, pairs_of


def test_the_change_and_where_it_is_by_hand() -> None:
    clean = torch.tensor([[1.0, 0.0, 5.0, 2.0], [3.0, 0.0, 5.0, 4.0]])
    woken = torch.tensor([[1.0, 6.0, 4.0, 2.0], [3.0, 8.0, 6.0, 4.0]])
    found = measured_features(clean, woken)
    assert (found["neurons"], found["silent"]) == (4, 1)
    assert found["change"] == [0.0, 7.0, 1.0, 0.0]
    assert found["change_in_quiet_half"] == pytest.approx(7 / 8), "neurons 1 and 0 are the quiet ones"
    assert found["change_in_top_tenth"] == pytest.approx(7 / 8)
    assert found["change_gini"] == pytest.approx(gini(torch.tensor([0.0, 7.0, 1.0, 0.0])))
    assert measured_features(clean, None) == {"neurons": 4, "silent": 1}


def test_silent_is_zero_and_a_strong_neuron_may_be_negative() -> None:
    clean = torch.tensor([[-1.0, 0.0, 0.1], [0.0, 0.0, 0.1]])
    assert measured_features(clean, None)["silent"] == 1
    woken = clean + torch.tensor([[3.0, 1.0, 0.0]])
    assert measured_features(clean, woken)["change_in_quiet_half"] == pytest.approx(1 / 4)


def test_the_means_are_those_of_the_features_and_the_strongest_come_first() -> None:
    models = planted(1)
    found = Activation().inspect(models.suspect, material(reference=None), runtime())
    pairs = pairs_of(material().clean, models.fitted)
    clean, woken = (features_of(models.suspect, images, runtime())[0] for images in (pairs.originals, pairs.triggered))
    told = found.details["suspect_activation"]
    torch.testing.assert_close(torch.tensor(told["clean"]), clean.mean(0))
    torch.testing.assert_close(torch.tensor(told["triggered"]), woken.mean(0))
    figure = found.figures[0]
    assert isinstance(figure, Figure)
    strongest = int(clean.mean(0).argmax())
    assert figure.series["clean"][1][0] == pytest.approx(float(clean.mean(0).max()))
    assert figure.series["triggered"][1][0] == pytest.approx(float(woken.mean(0)[strongest])), "of the same neuron"
    assert list(figure.series["clean"][1]) == sorted(figure.series["clean"][1], reverse=True)


def test_the_trigger_moves_the_suspect_s_features_more_than_its_twin_s() -> None:
    found = Activation().inspect(planted(1).suspect, material(), runtime()).measured
    assert sum(found["suspect"]["change"]) > 2 * sum(found["reference"]["change"])


def test_without_an_attack_silent_neurons_are_counted() -> None:
    found = Activation().inspect(planted(1).suspect, material(attack=None, reference=None), runtime())
    assert set(found.measured["suspect"]) == {"neurons", "silent"}
    assert "silent on all clean images" in found.headline
