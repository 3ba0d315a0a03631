"""CLP bounds how much channels can change, and switches off those that can change most."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.test_channels import described
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.purify import CLP
from unbackdoor.scan.lipschitz import channel_lipschitz, spectral_norms
from unbackdoor.testing.samples import same_state, state_of


@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 16, 3, 3), (4, 7, 1, 1), (3, 1, 3, 3), (2, 2, 5, 4)])
def test_norms_are_the_largest_singular_values_of_a_loop_over_filters(shape: tuple[int, ...]) -> None:
    filters = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = [np.linalg.svd(one.double().numpy().reshape(shape[1], -1), compute_uv=False)[0] for one in filters]
    np.testing.assert_allclose(spectral_norms(filters).numpy(), expected, rtol=1e-7)


def random_layer(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(channels, generator=generator))
        layer.bias.copy_(torch.randn(channels, generator=generator))
        assert layer.running_var is not None
        layer.running_var.copy_(torch.rand(channels, generator=generator) + 0.1)
    return layer


def test_the_bound_of_one_by_one_filters_is_the_norm_of_the_gradient() -> None:
    """There the matrix is a vector, and the channel is a linear function of its pixel's inputs."""
    one, two = nn.Conv2d(3, 4, 1), nn.Conv2d(5, 4, 1, bias=False)
    layer = random_layer(4)
    inputs = [torch.randn(1, size, 1, 1, requires_grad=True) for size in (3, 5)]
    outputs = layer(one(inputs[0]) + two(inputs[1])).flatten()
    expected = []
    for channel in range(4):
        parts = torch.autograd.grad(outputs[channel], inputs, retain_graph=True)
        expected.append(float(torch.cat([part.flatten() for part in parts]).norm()))
    assert channel_lipschitz(layer, [one, two]).tolist() == pytest.approx(expected, rel=1e-5)


def lipschitz_by_hand(convolution: nn.Conv2d, layer: nn.BatchNorm2d) -> np.ndarray:
    assert layer.running_var is not None
    weights = convolution.weight.detach().double().numpy()
    norms = np.array([np.linalg.svd(one.reshape(len(one), -1), compute_uv=False)[0] for one in weights])
    gamma = layer.weight.detach().double().numpy()
    bounds: np.ndarray = norms * np.abs(gamma) / np.sqrt(layer.running_var.double().numpy() + layer.eps)
    return bounds


@pytest.mark.parametrize("u", [1.0, 2.0])
def test_channels_far_above_their_layer_go_with_their_bias_and_nothing_else_changes(u: float) -> None:
    model = planted(1).suspect
    repaired, history = CLP(u=u, choose=False).purify(model, planted(1).data, runtime())
    expected, gone = state_of(model), 0
    for number in (0, 3, 6):
        bounds = lipschitz_by_hand(model.body[number], model.body[number + 1])  # type: ignore[index]
        off = torch.from_numpy(bounds > bounds.mean() + u * bounds.std(ddof=1))
        gone += int(off.sum())
        expected[f"body.{number + 1}.weight"][off] = 0
        expected[f"body.{number + 1}.bias"][off] = 0
    assert gone > 0
    assert same_state(state_of(repaired), expected)
    assert history.notes == (f"CLP switched off {gone} of 60 channels of batch normalization.",)
    assert (history.epochs, history.sweeps) == (0, ())


def test_without_data_the_papers_u_is_used() -> None:
    models = planted(5)
    repaired, history = CLP().purify(models.suspect, DefenderData(), runtime())
    fixed, _ = CLP(choose=False).purify(models.suspect, models.data, runtime())
    assert CLP().u == 3.0
    assert same_state(state_of(repaired), state_of(fixed))
    assert not same_state(state_of(repaired), state_of(models.suspect))
    assert history.sweeps == ()


@pytest.mark.parametrize("seed", [2, 4, 5, 6])
def test_a_planted_backdoor_is_pruned_and_a_clean_twin_keeps_its_accuracy(seed: int) -> None:
    models = planted(seed)
    repaired, history = CLP().purify(models.suspect, models.data, runtime(seed))
    twin, _ = CLP().purify(models.twin, models.data, runtime(seed))
    before, after, unharmed = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, twin)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert unharmed.acc.value > 0.95
    (sweep,) = history.sweeps
    assert sweep.chosen in sweep.values
    assert "clean samples" in sweep.rule


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_dead_channels_give_numbers(gamma: float) -> None:
    """Published code has no eps: there the whole layer is compared with infinity or with no number."""
    model = network(0)
    layer = model.body[1]  # type: ignore[index]
    with torch.no_grad():
        layer.running_var[:2] = 0
        layer.weight[:2] = gamma
    bounds = channel_lipschitz(layer, [model.body[0]])  # type: ignore[index]
    assert bool(bounds.isfinite().all())
    repaired, _ = CLP().purify(model, DefenderData(clean=pictures(24, 3)), runtime())
    assert all(bool(value.isfinite().all()) for value in state_of(repaired).values())


def test_of_a_pre_activation_block_the_channel_that_is_run_last_into_the_layer_goes() -> None:
    """The module before `norm` in the list of modules is the shortcut, whose filters are all the same."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.Conv2d(3, 16, 3, padding=1)
            self.shortcut = nn.Conv2d(3, 16, 1)
            self.norm = nn.BatchNorm2d(16)
            nn.init.ones_(self.shortcut.weight)
            with torch.no_grad():
                self.main.weight[7] *= 30

        def forward(self, images: Tensor) -> Tensor:
            return self.norm(self.main(images) + self.shortcut(images)).mean((2, 3))[:, :2]  # type: ignore[no-any-return]

    repaired, _ = CLP(choose=False).purify(described(Block()), DefenderData(), runtime())
    assert (repaired.body.norm.weight == 0).nonzero().flatten().tolist() == [7]  # type: ignore[union-attr]


def test_what_it_cannot_prune_is_refused() -> None:
    flat = described(nn.Sequential(nn.Flatten(), nn.Linear(432, 2)))
    with pytest.raises(InputError, match="batch normalization with running statistics, and this network has none"):
        CLP().purify(flat, DefenderData(), runtime())
    alone = described(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(432, 2)))
    with pytest.raises(InputError, match="comes after convolutions"):
        CLP().purify(alone, DefenderData(), runtime())


def test_the_model_that_it_is_given_stays() -> None:
    model = planted(2).suspect
    before = state_of(copy.deepcopy(model))
    CLP().purify(model, planted(2).data, runtime())
    assert same_state(before, state_of(model))


@pytest.mark.parametrize("u", [-1.0, float("inf"), float("nan")])
def test_u_out_of_range_is_refused(u: float) -> None:
    with pytest.raises(InputError, match=r"^CLP: u must"):
        CLP(u=u)


@pytest.mark.parametrize("allowance", [-0.1, 1.1, float("nan")])
def test_an_allowance_that_is_no_share_is_refused(allowance: float) -> None:
    with pytest.raises(InputError, match=r"^CLP: the allowance"):
        CLP(allowance=allowance)
