"""The staircase: weights in closed form, a density that is known, and what is kept comes back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from unbackdoor.scan.stacked import NOISE, Generators
from unbackdoor.scan.trigger_distribution import TriggerDistribution, staircase_weights

SHAPE = (3, 2, 2)
NUMBERS = 12


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution(betas: tuple[float, ...] = (0.9, 0.8, 0.5), information: Tensor | None = None) -> TriggerDistribution:
    rows = len(betas)
    generators = Generators(rows, SHAPE, 8, draws())
    with torch.no_grad():
        # Sub-models that differ, and triggers that do.
        generators.layers[-1].weight.mul_(torch.arange(1.0, rows + 1).view(-1, 1, 1) * 4)
        generators.layers[-1].bias.add_(torch.arange(0.0, rows).view(-1, 1, 1))
    generators.settle(torch.randn(200, NOISE, generator=draws(1)))
    return TriggerDistribution(
        target=2,
        betas=betas,
        generators=generators.requires_grad_(False),
        noise=0.1,
        information=torch.zeros(rows) if information is None else information,
        success=torch.linspace(0.9, 0.5, rows),
    )


def constant(*values: float, information: Tensor | None = None) -> TriggerDistribution:
    """Return a distribution whose sub-models always draw the same grey trigger."""
    made = distribution(tuple(0.9 - 0.1 * number for number in range(len(values))), information)
    with torch.no_grad():
        last = made.generators.layers[-1]
        last.weight.zero_()
        last.bias.copy_(torch.tensor(values).logit().view(-1, 1, 1).expand_as(last.bias))
    return made


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_weights_are_steps_times_volumes(order: tuple[int, ...]) -> None:
    """Volumes 1, 2 and 6 above 0.9, 0.8 and 0.5: steps 0.1, 0.3 and 0.5 times these."""
    betas, volumes = [0.9, 0.8, 0.5], [1.0, 2.0, 6.0]
    expected = torch.tensor([0.1 * 1, 0.3 * 2, 0.5 * 6])
    found = staircase_weights([betas[one] for one in order], torch.tensor([volumes[one] for one in order]).log())
    torch.testing.assert_close(found, (expected / expected.sum())[list(order)])


def test_the_mixture_is_the_staircase() -> None:
    """Uniform sub-models on level sets of a score on a line: their mixture is proportional to the steps below it."""
    points = torch.linspace(0, 1, 1001)[:-1]
    score, betas = 1 - points, (0.75, 0.5, 0.25)
    volumes = torch.tensor([float((score >= beta).float().mean()) for beta in betas])
    densities = torch.stack([(score >= beta).float() / volume for beta, volume in zip(betas, volumes)])
    mixture = (staircase_weights(betas, volumes.log())[:, None] * densities).sum(0)
    stairs = (score / 0.25 + 1e-6).floor() * 0.25
    stairs = torch.where(score >= 0.75, torch.tensor(0.75), stairs)
    torch.testing.assert_close(mixture, stairs / stairs.mean(), rtol=1e-4, atol=1e-4)


def test_the_entropy_of_a_constant_trigger_is_that_of_its_noise() -> None:
    found = constant(0.3).entropies
    assert float(found) == pytest.approx(NUMBERS * float(Normal(0.0, 0.1).entropy()), rel=1e-5)


def test_information_adds_to_the_entropy_and_moves_the_weights() -> None:
    made = distribution(information=torch.tensor([0.0, 1.0, 2.0]))
    assert (made.entropies - made.entropies[0]).tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-4)
    expected = torch.tensor([0.1, 0.3 * math.e, 0.5 * math.e**2])
    torch.testing.assert_close(made.weights, expected / expected.sum(), rtol=1e-3, atol=1e-4)


def test_the_density_of_a_constant_trigger_is_that_of_its_noise() -> None:
    triggers = torch.rand(5, *SHAPE, generator=draws(3))
    found = constant(0.3).log_density(triggers, draws(4))
    expected = Normal(0.3, 0.1).log_prob(triggers).flatten(1).sum(1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-2)


def test_the_density_of_a_mixture_weighs_its_sub_models() -> None:
    made, triggers = constant(0.3, 0.5), torch.rand(5, *SHAPE, generator=draws(3)) * 0.4 + 0.2
    each = torch.stack([Normal(value, 0.1).log_prob(triggers).flatten(1).sum(1).exp() for value in (0.3, 0.5)])
    expected = (made.weights[:, None] * each).sum(0).log()
    torch.testing.assert_close(made.log_density(triggers, draws(4)), expected, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(made.log_density(triggers, draws(4), of=1), each[1].log(), rtol=1e-3, atol=1e-2)


def test_sub_models_are_drawn_as_often_as_they_weigh() -> None:
    made = constant(0.2, 0.8, information=torch.tensor([0.0, -1.0]))
    triggers = made.sample(4000, draws(5))
    torch.testing.assert_close(triggers.unique(), torch.tensor([0.2, 0.8]))
    share = float((triggers[:, 0, 0, 0] < 0.5).float().mean())
    assert share == pytest.approx(float(made.weights[0]), abs=0.03)
    assert 0.05 < share < 0.95


def test_triggers_of_one_sub_model_are_its_own_and_the_seed_decides() -> None:
    made = distribution()
    first = made.sample(50, draws(6), of=2)
    assert first.shape == (50, *SHAPE)
    assert 0 <= float(first.min()) < float(first.max()) <= 1
    assert torch.equal(first, made.sample(50, draws(6), of=2))
    torch.testing.assert_close(first, made.only(2).sample(50, draws(6), of=0))
    assert not torch.equal(first, made.sample(50, draws(7), of=2))
    assert float(first.std(0).mean()) > 0.01


def test_one_sub_model_alone_has_its_own_figures() -> None:
    made = distribution(information=torch.tensor([0.5, 1.0, 2.0])).only(1)
    assert (made.betas, made.target) == ((0.8,), 2)
    assert made.information.tolist() == [1.0]
    assert made.success.tolist() == pytest.approx([0.7])
    assert made.weights.tolist() == [1.0]


def test_the_typical_trigger_is_drawn_by_the_sub_model_with_the_largest_threshold() -> None:
    made = constant(0.2, 0.8)
    torch.testing.assert_close(made.typical(draws()), torch.full(SHAPE, 0.2))
    middle = distribution()
    triggers = middle.sample(256, draws(8), of=0)
    nearest = (triggers - triggers.mean(0)).flatten(1).norm(dim=1).min()
    assert float((middle.typical(draws(8)) - triggers.mean(0)).norm()) == pytest.approx(float(nearest), rel=1e-4)


def test_its_state_makes_it_again() -> None:
    made = distribution(information=torch.tensor([0.5, 1.0, 2.0]))
    again = TriggerDistribution.from_state(made.state())
    assert (again.target, again.betas, again.noise, again.shape) == (made.target, made.betas, made.noise, made.shape)
    assert torch.equal(again.sample(20, draws()), made.sample(20, draws()))
    assert torch.equal(again.weights, made.weights)
    assert torch.equal(again.success, made.success)
