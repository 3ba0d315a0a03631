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
from unbackdoor.training.bounded import Bound, Bounded, Of, bounded_loss


@pytest.mark.parametrize("value", [0.1, 0.49, 0.51, 3.0])
def test_bounded_losses_equal_their_formulas_and_have_the_same_gradient(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    ascent, flooding = bounded_loss(loss, 0.5, "ascent"), bounded_loss(loss, 0.5, "flooding")
    assert float(ascent.detach()) == pytest.approx(math.copysign(value, value - 0.5))
    assert float(flooding.detach()) == pytest.approx(abs(value - 0.5) + 0.5)
    gradients = [float(torch.autograd.grad(one, loss, retain_graph=True)[0]) for one in (ascent, flooding)]
    assert gradients == [math.copysign(1, value - 0.5)] * 2


@pytest.mark.parametrize("of", ["row", "batch"])
@pytest.mark.parametrize("bound", ["ascent", "flooding"])
def test_training_keeps_the_loss_at_gamma(bound: Bound, of: Of) -> None:
    model, data = network(0), pictures(160, 0)
    recipe = Recipe(
        epochs=25, batch_size=32, learning_rate=0.01, schedule="constant", label_smoothing=0.0, ema=0.0,
        augmentation="none", low_resolution=0.0,
    )  # fmt: skip
    fit(model, data, recipe, runtime(), hook=Bounded(0.5, bound, of))
    free = network(0)
    fit(free, data, recipe, runtime())
    assert 0.25 < float(losses_of(model, data, runtime()).mean()) < 1.0
    assert float(losses_of(free, data, runtime()).mean()) < 0.15


def test_rows_below_gamma_are_pushed_up_and_others_down_each_by_itself() -> None:
    losses = torch.tensor([0.2, 0.9, 2.0], requires_grad=True)
    value = bounded_loss(losses, 0.5, "ascent")
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
    hook = Bounded(gamma, "ascent", of)
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    assert float(hook.loss(model, batch).detach()) == pytest.approx(float(OF_ROWS[of](losses, gamma)), rel=1e-4)
    assert float(OF_ROWS["row"](losses, gamma)) != pytest.approx(float(OF_ROWS["batch"](losses, gamma)), rel=1e-2)


def test_the_two_are_not_taken_for_each_other_where_a_run_goes_on() -> None:
    assert Bounded(0.5, "ascent", "row").identity() != Bounded(0.5, "ascent", "batch").identity()


@pytest.mark.parametrize(("gamma", "bound"), [(-0.1, "ascent"), (float("nan"), "flooding"), (0.5, "none")])
def test_options_that_cannot_work_are_refused(gamma: float, bound: Bound) -> None:
    with pytest.raises(InputError, match="the bound is ascent or flooding"):
        Bounded(gamma, bound, "batch")
