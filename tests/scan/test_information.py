"""MINE: known information is estimated, and the gradient is the bias-corrected one."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unbackdoor.scan.information import RATE, corrected_objective, information, log_mean_exp, moved_average
from unbackdoor.scan.stacked import Statistics


def values(seed: int, rows: int = 3, count: int = 20, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_bound_is_the_mean_less_the_logarithm_of_the_mean_exponential() -> None:
    joint, independent = values(0), values(1)
    expected = [
        sum(one) / len(one) - math.log(sum(math.exp(value) for value in other) / len(other))
        for one, other in zip(joint.tolist(), independent.tolist())
    ]
    assert information(joint, independent).tolist() == pytest.approx(expected)


def test_large_values_do_not_overflow() -> None:
    assert log_mean_exp(torch.tensor([[1000.0, 1000.0]])).tolist() == [1000.0]
    joint, independent = values(0, scale=500), values(1, scale=500)
    average = moved_average(None, independent)
    assert torch.isfinite(corrected_objective(joint, independent, average)).all()


@pytest.mark.parametrize("age", [0, 3])
def test_the_gradient_is_that_of_the_batch_over_the_moving_average(age: int) -> None:
    """By autograd through the published expression, and by the formula (mean T)' - (mean exp T)' / m."""
    average, plain = None, None
    for seed in range(age + 1):
        independent = values(10 + seed)
        average = moved_average(average, independent)
        now = independent.exp().mean(1)
        plain = now if plain is None else (1 - RATE) * plain + RATE * now
    assert average is not None
    assert plain is not None
    torch.testing.assert_close(average.exp(), plain)
    joint, independent = values(0).requires_grad_(True), independent.requires_grad_(True)
    ours = torch.autograd.grad(corrected_objective(joint, independent, average).sum(), [joint, independent])
    exponential = independent.exp().mean(1)
    published = joint.mean(1) - exponential.log() * (exponential / plain).detach()
    theirs = torch.autograd.grad(published.sum(), [joint, independent])
    formula = [torch.full_like(joint, 1 / 20), -independent.exp() / 20 / plain[:, None]]
    for one, other, third in zip(ours, theirs, formula):
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(one, third.detach())


def test_the_moving_average_remembers() -> None:
    first, second = torch.zeros(1, 4), torch.full((1, 4), 2.0)
    average = moved_average(moved_average(None, first), second)
    assert float(average.exp()) == pytest.approx(1 - RATE + RATE * math.exp(2))


def test_information_of_gaussians_of_known_correlation_is_found_and_of_independent_ones_there_is_none() -> None:
    """Row by row: correlations 0, 0.5 and 0.9 of two pairs of numbers each; -log(1 - rho^2) nats."""
    correlations = torch.tensor([0.0, 0.5, 0.9])
    draws = torch.Generator().manual_seed(0)
    network = Statistics(3, 2, 2, 48, draws)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3, betas=(0.5, 0.999))

    def evaluated(count: int) -> tuple[Tensor, Tensor]:
        one, other = torch.randn(2, count, 2, generator=draws)
        share = correlations.view(-1, 1, 1)
        pairs = share * one + (1 - share.square()).sqrt() * torch.randn(3, count, 2, generator=draws)
        return network(one, pairs), network(other, pairs)

    average = None
    for _ in range(500):
        joint, independent = evaluated(256)
        average = moved_average(average, independent)
        optimizer.zero_grad()
        (-corrected_objective(joint, independent, average).sum()).backward()
        optimizer.step()
    with torch.no_grad():
        found = information(*evaluated(20000))
    expected = -(1 - correlations.square()).log()
    assert (found - expected).abs().max() < 0.12, found
    assert found[1] > 0.15
