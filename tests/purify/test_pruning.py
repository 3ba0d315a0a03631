"""Channels go in the order of their scores, as far as clean samples allow."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.planted import planted, runtime
from unbackdoor.purify import pruning as module
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.pruning import prune_outliers, standardized, sweep_below, switch_off_below
from unbackdoor.testing.samples import same_state, state_of


def layers_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return list(norm_layers(model, "Test").values())


def random_scores(count: int = 60) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_channels_strictly_below_the_value_go_and_no_others(bias: bool) -> None:
    layers = [nn.BatchNorm2d(2), nn.BatchNorm2d(3)]
    for layer in layers:
        nn.init.ones_(layer.bias)
    assert switch_off_below(layers, torch.tensor([0.1, 0.5, 0.2, 0.9, 0.4]), 0.4, bias) == 2
    assert [layer.weight.tolist() for layer in layers] == [[0.0, 1.0], [0.0, 1.0, 1.0]]
    assert layers[1].bias.tolist() == ([0.0, 1.0, 1.0] if bias else [1.0] * 3)


def test_the_sweep_is_a_plain_loop_over_copies_and_leaves_the_model() -> None:
    models = planted(1)
    model, held = copy.deepcopy(models.suspect), models.data.need_clean("Test")
    before, scores, values = state_of(model), random_scores(), [0.0, 0.2, 0.4, 0.6, 0.8]
    sweep = sweep_below("score", model, layers_of(model), scores, values, held, 0.3, runtime())
    assert same_state(before, state_of(model))
    expected = []
    for value in values:
        trial = copy.deepcopy(models.suspect)
        switch_off_below(layers_of(trial), scores, value)
        expected.append(accuracy_on(trial, held, runtime()))
    assert list(sweep.accuracy) == expected
    floor = expected[0] - 0.3
    good = [value for number, value in enumerate(values) if min(expected[: number + 1]) >= floor]
    assert sweep.chosen == good[-1]
    assert 0 < sweep.chosen < 0.8, "the case is no trivial one"


def test_without_allowance_nothing_that_costs_accuracy_is_done() -> None:
    models = planted(1)
    model, held = copy.deepcopy(models.suspect), models.data.need_clean("Test")
    sweep = sweep_below("score", model, layers_of(model), random_scores(), [0.0, 0.2, 0.9], held, 0.0, runtime())
    assert sweep.accuracy[sweep.values.index(sweep.chosen)] >= sweep.accuracy[0]


def test_values_that_prune_the_same_channels_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    layers, held = [nn.BatchNorm2d(2)], planted(1).data.need_clean("Test")

    def counted(*_: object) -> float:
        runs.append(1)
        return 1.0

    monkeypatch.setattr(module, "accuracy_on", counted)
    sweep_below("score", layers[0], layers, torch.tensor([0.5, 0.6]), [0.0, 0.1, 0.2, 0.55], held, 0.1, runtime())
    assert len(runs) == 2


def test_scores_are_standardised_as_numpy_does_it() -> None:
    scores = random_scores(20).double()
    expected = (scores.numpy() - scores.numpy().mean()) / scores.numpy().std(ddof=1)
    torch.testing.assert_close(standardized(scores), torch.from_numpy(expected))


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.0], [0.3, 0.3 + 1e-9, 0.3], [2.0]])
def test_scores_that_do_not_differ_are_no_outliers_and_no_nan(scores: list[float]) -> None:
    assert standardized(torch.tensor(scores, dtype=torch.float64)).tolist() == [0.0] * len(scores)


def test_without_clean_samples_the_given_u_decides_layer_by_layer() -> None:
    layers = [nn.BatchNorm2d(5), nn.BatchNorm2d(4)]
    scores = [torch.tensor([1.0, 1.1, 0.9, 1.0, 3.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])]
    sweeps, note = prune_outliers("Test", layers[0], layers, scores, 1.5, None, 0.0, runtime())
    assert sweeps == ()
    assert note == "Test switched off 1 of 9 channels of batch normalization."
    assert [layer.weight.tolist() for layer in layers] == [[1.0, 1.0, 1.0, 1.0, 0.0], [1.0] * 4]


def test_with_clean_samples_u_is_the_least_that_keeps_accuracy() -> None:
    models = planted(1)
    model, held = copy.deepcopy(models.suspect), models.data.need_clean("Test")
    scores = list(random_scores().split_with_sizes([layer.num_features for layer in layers_of(model)]))
    # One that no u of BackdoorBench's range would keep, did the range not begin above it.
    scores[2][3] = 100.0
    (sweep,), note = prune_outliers("Test", model, layers_of(model), scores, 7.0, held, 0.05, runtime())
    assert sweep.values == tuple(0.5 * number for number in range(len(sweep.values)))
    largest = max(float(standardized(one.double()).max()) for one in scores)
    assert sweep.values[-1] - 0.5 < largest <= sweep.values[-1]
    assert sweep.accuracy[-1] == accuracy_on(models.suspect, held, runtime()), "it begins with nothing pruned"
    beyond = [share for value, share in zip(sweep.values, sweep.accuracy) if value >= sweep.chosen]
    assert min(beyond) >= sweep.accuracy[-1] - 0.05 - 1e-5
    assert sweep.chosen == 0 or sweep.accuracy[sweep.values.index(sweep.chosen) - 1] < sweep.accuracy[-1] - 0.05
    off = sum(int((layer.weight == 0).sum()) for layer in layers_of(model))
    assert off == sum(int((standardized(one.double()) > sweep.chosen).sum()) for one in scores)
    assert f" {off} of 60 " in note
