"""The weights alone name a class with large ones, and measure the most unusual channel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.planted import CLASSES, network, planted, runtime
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan import WeightStatistics
from unbackdoor.scan.weight_statistics import largest_deviation


def test_a_class_with_larger_weights_is_suspected_without_any_data() -> None:
    model = network(0)
    with torch.no_grad():
        model.body[-1].weight[3] += 0.5
    found = WeightStatistics().scan(model, DefenderData(), runtime())
    assert (found.backdoored, found.suspected) == (True, (3,))
    assert "class 3" in found.reason
    plain = WeightStatistics().scan(network(0), DefenderData(), runtime())
    assert plain.backdoored is False


def test_the_anomaly_is_the_index_of_the_mean_weights() -> None:
    model = network(0)
    found = WeightStatistics().scan(model, DefenderData(), runtime())
    means = model.body[-1].weight.detach().double().mean(1)
    median = means.quantile(0.5)
    spread = 1.4826 * (means - median).abs().quantile(0.5)
    torch.testing.assert_close(found.anomaly.double(), (means - median) / spread, rtol=1e-4, atol=1e-5)


def test_the_largest_deviation_of_a_channel_is_that_of_the_formula() -> None:
    model = network(0).eval().requires_grad_(False)
    with torch.no_grad():
        model.body[1].weight[5] = 40.0
    convolution, norm = model.body[0], model.body[1]
    bounds = torch.tensor(
        [
            float(torch.linalg.matrix_norm(filters.flatten(1), 2) * gamma.abs() / (var + norm.eps).sqrt())
            for filters, gamma, var in zip(convolution.weight, norm.weight, norm.running_var)
        ]
    )
    assert int(bounds.argmax()) == 5
    expected = (bounds.max() - bounds.mean()) / bounds.std()
    assert largest_deviation(model, runtime()) == pytest.approx(float(expected), rel=1e-4)
    assert WeightStatistics().scan(model, DefenderData(), runtime()).evidence["channel"] == pytest.approx(
        float(expected), rel=1e-4
    )


@pytest.mark.parametrize("seed", [1, 2, 4, 8])
def test_a_planted_target_has_the_largest_weights_and_its_twin_has_none_as_large(seed: int) -> None:
    models = planted(seed)
    found, twin = (WeightStatistics().scan(one, DefenderData(), runtime()) for one in (models.suspect, models.twin))
    assert found.suspected[0] == models.target
    assert float(twin.anomaly.max()) < 0.8 * float(found.anomaly.max())


def test_a_network_without_normalisation_has_no_channel_and_one_without_a_last_layer_is_refused() -> None:
    description = network(0).description
    plain = Network(nn.Sequential(nn.Flatten(), nn.Linear(432, CLASSES)), description)
    assert dict(WeightStatistics().scan(plain, DefenderData(), runtime()).evidence) == {}
    none = Network(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU()), copy.deepcopy(description))
    with pytest.raises(InputError, match="choose another scanner"):
        WeightStatistics().scan(none, DefenderData(), runtime())
