"""The averaged weights follow their recursion."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unbackdoor.training.average import Average


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_average_equals_its_recursion_with_a_decay_that_warms_up(decay: float) -> None:
    model = _model()
    average = Average(model, decay)
    expected = {name: value.detach().double() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        with torch.no_grad():
            for value in model.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape, generator=generator))
                else:
                    value.fill_(100 + step)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = kept * expected[name] + (1 - kept) * value.double()
            else:
                expected[name] = value.double()
        for name, value in average.model.state_dict().items():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-6)


def test_average_includes_running_statistics_and_copies_counts() -> None:
    model = _model().train()
    average = Average(model, 0.5)
    model(torch.rand(8, 3))
    average.update(100)
    ours, theirs = average.model.state_dict(), model.state_dict()
    # From 0 (the running mean at the start), half way.
    torch.testing.assert_close(ours["1.running_mean"], theirs["1.running_mean"] / 2)
    assert int(ours["1.num_batches_tracked"]) == 1


def test_the_followed_model_is_not_touched() -> None:
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average = Average(model, 0.9)
    with torch.no_grad():
        for parameter in average.model.parameters():
            parameter.add_(1)
    average.update(0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_first_steps_forget_more_than_later_ones() -> None:
    """At step 0 a tenth of the past stays, whatever the decay."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = Average(model, 0.999)
    nn.init.ones_(model.weight)
    average.update(0)
    assert average.model.weight.item() == pytest.approx(0.9)
