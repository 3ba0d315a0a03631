"""Isolation by losses: the bounded losses, the order of losses, and the rows that are isolated."""

from __future__ import annotations

import math

import pytest
import torch

from tests.planted import network, pictures, runtime
from unbackdoor.errors import InputError
from unbackdoor.secure.isolation import Bound, Bounded, bounded_loss, losses_of, lowest
from unbackdoor.training import Batch, Recipe


@pytest.mark.parametrize("value", [0.1, 0.49, 0.51, 3.0])
def test_bounded_losses_equal_their_formulas_and_have_the_same_gradient(value: float) -> None:
    loss = torch.tensor(value, requires_grad=True)
    ascent, flooding = bounded_loss(loss, 0.5, "ascent"), bounded_loss(loss, 0.5, "flooding")
    assert float(ascent.detach()) == pytest.approx(math.copysign(value, value - 0.5))
    assert float(flooding.detach()) == pytest.approx(abs(value - 0.5) + 0.5)
    gradients = [float(torch.autograd.grad(one, loss, retain_graph=True)[0]) for one in (ascent, flooding)]
    assert gradients == [math.copysign(1, value - 0.5)] * 2


@pytest.mark.parametrize("bound", ["ascent", "flooding"])
def test_training_keeps_the_loss_at_gamma(bound: Bound) -> None:
    from unbackdoor.training import fit

    model, data = network(0), pictures(160, 0)
    recipe = Recipe(
        epochs=25, batch_size=32, learning_rate=0.01, schedule="constant", label_smoothing=0.0, ema=0.0,
        augmentation="none", low_resolution=0.0,
    )  # fmt: skip
    fit(model, data, recipe, runtime(), hook=Bounded(0.5, bound))
    free = network(0)
    fit(free, data, recipe, runtime())
    assert 0.25 < float(losses_of(model, data, runtime()).mean()) < 1.0
    assert float(losses_of(free, data, runtime()).mean()) < 0.15


def test_losses_are_those_of_each_image_alone_in_evaluation_mode() -> None:
    model, data = network(0).train(), pictures(20, 0)
    losses = losses_of(model, data, runtime())
    assert model.training
    model.eval()
    for image, label, loss in zip(data.images, data.labels, losses.tolist()):
        probability = model(image[None].float() / 255).softmax(1)[0, label]
        assert loss == pytest.approx(-math.log(float(probability.detach())), rel=1e-4)


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.001, 1), (0.999, 7)])
def test_the_lowest_losses_are_isolated_at_least_one_and_never_all(share: float, count: int) -> None:
    losses = torch.tensor([3.0, 0.5, 2.0, 0.1, 9.0, 4.0, 1.0, 7.0])
    isolated, kept = lowest(losses, share)
    assert len(isolated) == count
    assert sorted([*isolated.tolist(), *kept.tolist()]) == list(range(8))
    assert float(losses[isolated].max()) < float(losses[kept].min())
    assert isolated.tolist() == sorted(isolated.tolist())


def test_the_hook_descends_the_bounded_loss() -> None:
    model, data = network(0).eval(), pictures(16, 0)
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(16))
    hook = Bounded(9.0, "ascent")
    hook.begin(model, Recipe(label_smoothing=0.0), runtime())
    assert float(hook.loss(model, batch)) == pytest.approx(-float(losses_of(model, data, runtime()).mean()), rel=1e-4)


@pytest.mark.parametrize(("gamma", "bound"), [(-0.1, "ascent"), (float("nan"), "flooding"), (0.5, "none")])
def test_options_that_cannot_work_are_refused(gamma: float, bound: Bound) -> None:
    with pytest.raises(InputError, match="the bound is ascent or flooding"):
        Bounded(gamma, bound)
