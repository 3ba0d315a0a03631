"""Running statistics of batch normalisation are kept or counted anew, as asked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.planted import network, pictures, runtime
from unbackdoor.purify import statistics as module
from unbackdoor.purify.statistics import renew_statistics, statistics_kept
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime


@pytest.mark.parametrize("batch", [500, 9])
def test_statistics_are_the_averages_over_the_images_given(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", batch)
    clean = pictures(18, 3)
    model = network(0).train()
    model(torch.rand(4, 3, 12, 12))
    renew_statistics(model, clean.images, runtime())
    values = model.body[0](model.normalize(clean.images.float() / 255))  # type: ignore[index, operator]
    parts = values.split(18 if batch == 500 else 9)
    layer = model.body[1]  # type: ignore[index]
    means = torch.stack([part.mean((0, 2, 3)) for part in parts]).mean(0)
    variances = torch.stack([part.var((0, 2, 3)) for part in parts]).mean(0)
    torch.testing.assert_close(layer.running_mean, means, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(layer.running_var, variances, rtol=1e-3, atol=1e-5)
    assert layer.momentum == 0.1
    assert not any(one.training for one in model.modules())


def test_a_model_without_batch_normalisation_has_no_statistics_to_renew() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(432, 8)).train()
    before = state_of(model)
    renew_statistics(model, pictures(8, 3).images, runtime())
    assert same_state(before, state_of(model))
    assert not model.training


def test_statistics_move_again_afterwards_even_after_an_error() -> None:
    layers = [nn.BatchNorm2d(3, momentum=0.3), nn.BatchNorm2d(2, momentum=0.1)]
    with pytest.raises(ValueError, match="expected 4D"), statistics_kept(nn.Sequential(*layers)):
        nn.Sequential(layers[0], nn.Flatten(), layers[1])(torch.rand(4, 3, 2, 2))
    assert layers[0].running_mean is not None
    assert layers[0].running_mean.tolist() == [0.0] * 3
    assert [layer.momentum for layer in layers] == [0.3, 0.1]


def test_statistics_are_counted_in_float32_whatever_the_precision() -> None:
    exact, mixed = network(0), network(0)
    renew_statistics(exact, pictures(18, 3).images, runtime())
    renew_statistics(mixed, pictures(18, 3).images, Runtime(device="cpu", precision="bf16", threads=1))
    assert same_state(state_of(exact), state_of(mixed))
