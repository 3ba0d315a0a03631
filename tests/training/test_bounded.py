"""Bounded losses: their formulas of rows and of a batch, and training that keeps the loss at gamma."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.planted import network, pictures, runtime
from unbackdoor.errors import InputError
from unbackdoor.secure.isolation import losses_of
from unbackdoor.training import Batch, Recipe, fit
from unbackdoor.training.bounded import Bounded, Of, bounded_loss


@pytest.mark.parametrize("value", [0.1, 0.49, 0.51, 3.0])
def test_the_bounded_loss_equals_its_formula_and_has_the_gradient_of_flooding(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    ascent, flooding = bounded_loss(loss, 0.5), (loss - 0.5).abs() + 0.5
    assert float(ascent.detach()) == pytest.approx(math.copysign(value, value - 0.5))
    gradients = [float(torch.autograd.grad(one, loss, retain_graph=True)[0]) for one in (ascent, flooding)]
    assert gradients == [math.copysign(1, value - 0.5)] * 2


@pytest.mark.parametrize("of", ["row", "batch"])
def test_training_keeps_the_loss_at_gamma(of: Of) -> None:
    model, data = network(0), pictures(160, 0)
    recipe = Recipe(
        epochs=25, batch_size=32, learning_rate=0.01, schedule="constant", label_smoothing=0.0, ema=0.0,
        augmentation="none", low_resolution=0.0,
    )  # fmt: skip
    fit(model, data, recipe, runtime(), hook=Bounded(0.5, of))
    free = network(0)
    fit(free, data, recipe, runtime())
    assert 0.25 < float(losses_of(model, data, runtime()).mean()) < 1.0
    assert float(losses_of(free, data, runtime()).mean()) < 0.15


def test_rows_below_gamma_are_pushed_up_and_others_down_each_by_itself() -> None:
    losses = torch.tensor([0.2, 0.9, 2.0], requires_grad=True)
    value = bounded_loss(losses, 0.5)
    assert float(value.detach()) == pytest.approx((-0.2 + 0.9 + 2.0) / 3)
    value.backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == pytest.approx([-1 / 3, 1 / 3, 1 / 3])


OF_ROWS: dict[Of, Callable[[Tensor, float], Tensor]] = {
    "row": lambda losses, gamma: (torch.sign(losses - gamma) * losses).mean(),
    "batch": lambda losses, gamma: torch.sign(losses.mean() - gamma) * losses.mean(),
}


@pytest.mark.parametrize("of", list(OF_ROWS))
def test_the_hook_descends_the_bounded_loss_of_rows_or_of_their_batch(of: Of) -> None:
    model, data = network(0).eval(), pictures(16, 0)
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(16))
    losses = F.cross_entropy(model(batch.images), data.labels, reduction="none").detach()
    # Some rows lie above it and some below, and their mean not at it.
    gamma = float(losses.sort().values[3:5].mean())
    hook = Bounded(gamma, of)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    assert float(hook.loss(model, batch).detach()) == pytest.approx(float(OF_ROWS[of](losses, gamma)), rel=1e-4)
    assert float(OF_ROWS["row"](losses, gamma)) != pytest.approx(float(OF_ROWS["batch"](losses, gamma)), rel=1e-2)


def test_the_two_are_not_taken_for_each_other_where_a_run_goes_on() -> None:
    assert Bounded(0.5, "row").identity() != Bounded(0.5, "batch").identity()


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), math.inf])
def test_a_loss_that_nothing_can_be_kept_at_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match=f"gamma, at which the loss is kept, must be a number of 0 or more.* {gamma}"):
        Bounded(gamma, "batch")
