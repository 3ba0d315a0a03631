"""The bounded loss: its formula, and training that keeps the loss at gamma."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.planted import network, pictures, runtime
from unbackdoor.errors import InputError
from unbackdoor.training import Batch, Recipe, fit, losses_of
from unbackdoor.training.bounded import Bounded, bounded_loss


@pytest.mark.parametrize("value", [0.1, 0.49, 0.51, 3.0])
def test_the_bounded_loss_equals_its_formula_and_has_the_gradient_of_flooding(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    ascent, flooding = bounded_loss(loss, 0.5), (loss - 0.5).abs() + 0.5
    assert float(ascent.detach()) == pytest.approx(math.copysign(value, value - 0.5))
    gradients = [float(torch.autograd.grad(one, loss, retain_graph=True)[0]) for one in (ascent, flooding)]
    assert gradients == [math.copysign(1, value - 0.5)] * 2


def test_training_keeps_the_loss_at_gamma() -> None:
    model, data = network(0), pictures(160, 0)
    recipe = Recipe(
        epochs=25, batch_size=32, learning_rate=0.01, schedule="constant", label_smoothing=0.0, ema=0.0,
        augmentation="none", low_resolution=0.0,
    )  # fmt: skip
    fit(model, data, recipe, runtime(), hook=Bounded(0.5))
    free = network(0)
    fit(free, data, recipe, runtime())
    assert 0.25 < float(losses_of(model, data, runtime()).mean()) < 1.0
    assert float(losses_of(free, data, runtime()).mean()) < 0.15


@pytest.mark.parametrize("above", [True, False])
def test_the_hook_descends_a_batch_that_lies_above_gamma_and_climbs_one_that_lies_below(above: bool) -> None:
    model, data = network(0).eval(), pictures(16, 0)
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(16))
    losses = F.cross_entropy(model(batch.images), data.labels, reduction="none").detach()
    mean = float(losses.mean())
    # Between the mean and the row farthest on gamma's other side: rows lie on both.
    gamma = (mean + float(losses.min() if above else losses.max())) / 2
    hook = Bounded(gamma)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    assert float(hook.loss(model, batch).detach()) == pytest.approx(mean if above else -mean, rel=1e-4)


def test_a_run_does_not_go_on_with_another_bound() -> None:
    assert Bounded(0.5).identity() != Bounded(0.4).identity()


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), math.inf])
def test_a_loss_that_nothing_can_be_kept_at_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match=f"gamma, at which the loss is kept, must be a number of 0 or more.* {gamma}"):
        Bounded(gamma)
