"""The training loop does what its recipe says, step by step."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import runtime
from tests.refusals import refused
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError, UnbackdoorError
from unbackdoor.testing.samples import same_state, sample_images, sample_network, state_of
from unbackdoor.training import Batch, Hook, Recipe, fit
from unbackdoor.training.schedule import one_cycle

PLAIN: dict[str, Any] = {
    "momentum": 0.0,
    "nesterov": False,
    "weight_decay": 0.0,
    "schedule": "constant",
    "label_smoothing": 0.0,
    "ema": 0.0,
    "augmentation": "none",
    "low_resolution": 0.0,
}
"""Everything beyond plain gradient descent switched off."""


@pytest.fixture
def images() -> ImageSet:
    return sample_images((3, 16, 16))


def linear(shape: tuple[int, int, int] = (3, 16, 16), classes: int = 4) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


class Watch(Hook):
    """The plain loop, with notes of what it was given and where it led."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.rows: list[list[int]] = []
        self.images: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.losses: list[float] = []
        self.modes: list[bool] = []
        self.states: list[dict[str, Tensor]] = []

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.rows.append(batch.rows.tolist())
        self.images.append(batch.images.clone())
        self.targets.append(batch.targets)
        self.modes.append(model.training)
        loss = super().update(model, batch, optimizer)
        self.losses.append(float(loss))
        self.states.append(state_of(model))
        return loss


def test_a_stage_with_a_name_has_draws_of_its_own() -> None:
    """Two stages on the same rows would else see the same crops of them, in the same order."""
    recipe = Recipe(epochs=2, batch_size=8, learning_rate=0.1, augmentation="crop", low_resolution=0.0)

    def seen(*names: str) -> Watch:
        watch = Watch()
        fit(linear(), sample_images((3, 16, 16), 24), recipe, runtime(), hook=watch, names=names)
        return watch

    first, again, other = seen(), seen(), seen("second")
    assert first.rows == again.rows != other.rows
    assert torch.equal(torch.cat(first.images), torch.cat(again.images))
    assert Counter(row for rows in other.rows for row in rows) == Counter(row for rows in first.rows for row in rows)


def softmax_gradient(weight: np.ndarray, bias: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any, float]:
    """Return the gradients and the mean cross-entropy of softmax regression, in closed form."""
    logits = x @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    p[np.arange(len(y)), y] -= 1
    return p.T @ x / len(y), p.mean(0), float(loss)


def by_hand(model: nn.Module, data: ImageSet, steps: int) -> tuple[np.ndarray, np.ndarray, Any]:
    layer = model[1]
    weight = layer.weight.detach().double().numpy().copy()
    bias = layer.bias.detach().double().numpy().copy()
    x, y = data.images.flatten(1).double().numpy() / 255, data.labels.numpy()
    return weight, bias, [(x, y)] * steps


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.9, 0.05)])
def test_sgd_steps_equal_hand_computation_on_a_linear_model(
    images: ImageSet, nesterov: bool, momentum: float, decay: float
) -> None:
    model = linear()
    weight, bias, batches = by_hand(model, images, 3)
    options = {**PLAIN, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    recipe = Recipe(epochs=3, batch_size=len(images), learning_rate=0.02, **options)
    history = fit(model, images, recipe, runtime())
    values, moving, losses = [weight, bias], [0.0, 0.0], []
    for x, y in batches:
        *gradients, loss = softmax_gradient(values[0], values[1], x, y)
        losses.append(loss)
        for i, gradient in enumerate(gradients):
            pulled = gradient + decay * values[i]
            moving[i] = momentum * moving[i] + pulled
            values[i] = values[i] - 0.02 * (pulled + momentum * moving[i] if nesterov else moving[i])
    np.testing.assert_allclose(model[1].weight.detach().numpy(), values[0], atol=1e-5)
    np.testing.assert_allclose(model[1].bias.detach().numpy(), values[1], atol=1e-5)
    assert history.loss == pytest.approx(losses, abs=1e-5)


def test_adam_is_the_amsgrad_variant(images: ImageSet) -> None:
    model = linear()
    weight, bias, batches = by_hand(model, images, 6)
    recipe = Recipe(epochs=6, batch_size=len(images), optimizer="Adam", learning_rate=0.05, **PLAIN)
    fit(model, images, recipe, runtime())
    values, first, second, largest = [weight, bias], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    plain_differs = False
    for step, (x, y) in enumerate(batches, start=1):
        *gradients, _ = softmax_gradient(values[0], values[1], x, y)
        for i, gradient in enumerate(gradients):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
            largest[i] = np.maximum(largest[i], second[i])
            plain_differs |= bool((largest[i] > second[i]).any())
            root = np.sqrt(largest[i] / (1 - 0.999**step)) + 1e-8
            values[i] = values[i] - 0.05 * first[i] / (1 - 0.9**step) / root
    assert plain_differs, "AMSGrad must matter here, or this test could not tell it from Adam"
    np.testing.assert_allclose(model[1].weight.detach().numpy(), values[0], atol=2e-4)
    np.testing.assert_allclose(model[1].bias.detach().numpy(), values[1], atol=2e-4)


def test_the_result_is_the_moving_average_of_the_weights_that_the_steps_left(images: ImageSet) -> None:
    model, watch = sample_network(images.shape), Watch()
    expected = {name: value.double() for name, value in state_of(model).items()}
    recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.05, **{**PLAIN, "ema": 0.4})
    fit(model, images, recipe, runtime(), hook=watch)
    for step, state in enumerate(watch.states):
        kept = min(0.4, (1 + step) / (10 + step))
        for name, value in state.items():
            new = value.double()
            expected[name] = kept * expected[name] + (1 - kept) * new if value.is_floating_point() else new
    for name, value in state_of(model).items():
        torch.testing.assert_close(value.double(), expected[name], atol=1e-5, rtol=1e-5)
    assert not same_state(state_of(model), watch.states[-1])


def test_without_averaging_the_result_is_the_last_step(images: ImageSet) -> None:
    model, watch = sample_network(images.shape), Watch()
    fit(model, images, Recipe(epochs=2, batch_size=16, learning_rate=0.05, **PLAIN), runtime(), hook=watch)
    assert same_state(state_of(model), watch.states[-1])


def test_label_smoothing_spreads_the_target_over_all_classes(images: ImageSet) -> None:
    model = linear()
    p = model(images.images.float() / 255).detach().log_softmax(1)
    true = p[torch.arange(len(images)), images.labels]
    expected = -(0.7 * true + 0.3 / 4 * p.sum(1)).mean()
    recipe = Recipe(epochs=1, batch_size=len(images), learning_rate=0.01, **{**PLAIN, "label_smoothing": 0.3})
    history = fit(model, images, recipe, runtime())
    assert history.loss == pytest.approx([float(expected)], abs=1e-5)
    assert abs(float(expected) - float(-true.mean())) > 1e-3


def test_the_loss_of_an_epoch_is_the_mean_of_its_batches(images: ImageSet) -> None:
    watch = Watch()
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.1, **PLAIN)
    history = fit(linear(), images, recipe, runtime(), hook=watch)
    assert history.loss == pytest.approx([np.mean(watch.losses[:3]), np.mean(watch.losses[3:])], abs=1e-5)


@pytest.mark.parametrize(
    ("size", "batches", "each"), [(16, 3, 16), (20, 3, 16), (13, 4, 12), (48, 1, 48), (500, 1, 48), (47, 2, 24)]
)
def test_batches_are_equal_and_no_larger_than_asked(images: ImageSet, size: int, batches: int, each: int) -> None:
    watch = Watch()
    fit(linear(), images, Recipe(epochs=1, batch_size=size, learning_rate=0.01, **PLAIN), runtime(), hook=watch)
    assert [len(rows) for rows in watch.rows] == [each] * batches
    seen = [row for rows in watch.rows for row in rows]
    assert len(set(seen)) == len(seen), "no row twice in an epoch"


def test_rows_that_sit_out_one_epoch_are_seen_in_others(images: ImageSet) -> None:
    """47 rows in 5 batches of 9: two sit out each epoch, not always the same."""
    watch, data = Watch(), images.subset(torch.arange(47))
    recipe = Recipe(epochs=12, batch_size=10, learning_rate=0.01, **PLAIN)
    fit(linear(), data, recipe, runtime(), hook=watch)
    counts = Counter(row for rows in watch.rows for row in rows)
    assert set(counts) == set(range(47))
    assert sum(counts.values()) == 12 * 45
    orders = {tuple(map(tuple, watch.rows[5 * epoch : 5 * epoch + 5])) for epoch in range(12)}
    assert len(orders) == 12, "every epoch has its own order"


def test_a_batch_holds_the_images_and_labels_of_its_rows(images: ImageSet) -> None:
    class Compare(Hook):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            assert torch.equal(batch.targets, images.labels[batch.rows])
            torch.testing.assert_close(batch.images, images.images[batch.rows].float() / 255)
            return super().loss(model, batch)

    fit(linear(), images, Recipe(epochs=1, batch_size=16, **PLAIN), runtime(), hook=Compare())


def weights(data: ImageSet, seed: int, disturb: int = 0) -> dict[str, Tensor]:
    """Return what training leads to with dropout, crops and flips, after other draws from the global generator."""
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), linear()[1])
    torch.manual_seed(disturb)
    fit(network, data, Recipe(epochs=2, batch_size=16, learning_rate=0.05, low_resolution=0.0), runtime(seed))
    return state_of(network)


def test_the_seed_alone_decides(images: ImageSet) -> None:
    assert same_state(weights(images, 0), weights(images, 0, disturb=99))
    assert not same_state(weights(images, 0), weights(images, 1))


def test_every_step_has_the_learning_rate_of_its_schedule(images: ImageSet) -> None:
    watch = Watch()
    recipe = Recipe(epochs=4, batch_size=16, learning_rate=0.3, **{**PLAIN, "schedule": "one-cycle"})
    fit(linear(), images, recipe, runtime(), hook=watch)
    assert watch.rates == pytest.approx([0.3 * one_cycle(step, 12) for step in range(12)])


def area_to_three_quarters(image: np.ndarray) -> np.ndarray:
    """Average each cell's window, pixel by pixel: cell i of m spans [floor(i n / m), ceil((i + 1) n / m))."""
    channels, side, _ = image.shape
    small = side * 3 // 4
    result = np.zeros((channels, small, small))
    for c in range(channels):
        for i in range(small):
            for j in range(small):
                rows = range(i * side // small, -(-(i + 1) * side // small))
                columns = range(j * side // small, -(-(j + 1) * side // small))
                result[c, i, j] = np.mean([image[c, a, b] for a in rows for b in columns])
    return result


def test_low_resolution_epochs_see_images_of_three_quarters_of_the_side(images: ImageSet) -> None:
    watch, model = Watch(), sample_network(images.shape)
    recipe = Recipe(epochs=5, batch_size=24, learning_rate=0.01, **{**PLAIN, "low_resolution": 0.4})
    fit(model, images, recipe, runtime(), hook=watch)
    sides = [batch.shape[2:] for batch in watch.images]
    assert sides == [(12, 12)] * 4 + [(16, 16)] * 6
    row = watch.rows[0][5]
    expected = area_to_three_quarters(images.images[row].numpy() / 255)
    np.testing.assert_allclose(watch.images[0][5].numpy(), expected, atol=1e-6)


def pooling(times: int) -> nn.Sequential:
    """Return a network that needs a side of at least 2 ** times."""
    return nn.Sequential(*[nn.MaxPool2d(2)] * times, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))


def test_a_network_that_cannot_take_small_images_sees_whole_ones_in_all_epochs(images: ImageSet) -> None:
    watch = Watch()
    recipe = Recipe(epochs=2, batch_size=24, learning_rate=0.01, **{**PLAIN, "low_resolution": 1.0})
    fit(pooling(4), images, recipe, runtime(), hook=watch)
    assert {batch.shape[2:] for batch in watch.images} == {(16, 16)}


def test_a_network_that_cannot_take_the_images_is_refused_before_training(images: ImageSet) -> None:
    watch = Watch()
    with pytest.raises(InputError, match=r"3 x 16 x 16, which the network cannot take .*convert the images"):
        fit(pooling(5), images, Recipe(epochs=1, **PLAIN), runtime(), hook=watch)
    assert watch.images == []


def test_mixed_images_come_with_targets_mixed_alike(images: ImageSet) -> None:
    watch = Watch()
    recipe = Recipe(epochs=2, batch_size=24, learning_rate=0.01, **{**PLAIN, "augmentation": "cutmix"})
    fit(sample_network(images.shape), images, recipe, runtime(), hook=watch)
    for targets in watch.targets:
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)))
    assert any(0.01 < float(share) < 0.99 for targets in watch.targets for share in targets.flatten())


class Early(Watch):
    """Turns images, and calls them class 3, before they are augmented."""

    before_augmentation = True

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        self.given.append(batch.images.clone())
        return replace(batch, images=1 - batch.images, targets=torch.full_like(batch.targets, 3))


@pytest.mark.parametrize("shrunken", [0.0, 1.0])
def test_what_a_hook_makes_before_augmentation_is_augmented_and_shrunken(images: ImageSet, shrunken: float) -> None:
    hook = Early()
    options = {**PLAIN, "augmentation": "crop", "low_resolution": shrunken}
    fit(sample_network(images.shape), images, Recipe(epochs=1, batch_size=24, **options), runtime(), hook=hook)
    for rows, given, seen in zip(hook.rows, hook.given, hook.images, strict=True):
        plain = images.images[rows].float() / 255
        assert torch.equal(given, plain)
        # The pad of crops stays black, though the hook turned the images.
        bordered = F.pad(1 - plain, (4, 4, 4, 4))
        pieces = [bordered[:, :, y : y + 16, x : x + 16] for y in range(9) for x in range(9)]
        if shrunken:
            pieces = [F.interpolate(piece, scale_factor=0.75, mode="area") for piece in pieces]
        distances = torch.stack([(piece - seen).abs().amax((1, 2, 3)) for piece in pieces])
        assert float(distances.amin(0).max()) < 1e-5
        assert len(distances.argmin(0).unique()) > 1, "cropped, each its own way"
    assert all(targets.tolist() == [3] * len(targets) for targets in hook.targets)


def test_labels_that_a_hook_gives_before_augmentation_are_mixed(images: ImageSet) -> None:
    hook = Early()
    recipe = Recipe(epochs=1, batch_size=24, learning_rate=0.01, **{**PLAIN, "augmentation": "cutmix"})
    fit(sample_network(images.shape), images, recipe, runtime(), hook=hook)
    for targets in hook.targets:
        torch.testing.assert_close(targets[:, 3], torch.ones(len(targets)))


@pytest.mark.parametrize("train_mode", [True, False])
def test_train_mode_decides_whether_batch_statistics_are_used(images: ImageSet, train_mode: bool) -> None:
    watch, model = Watch(), sample_network(images.shape)
    before = model.body[1].running_mean.clone()
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.01, train_mode=train_mode, **PLAIN)
    fit(model, images, recipe, runtime(), hook=watch)
    assert set(watch.modes) == {train_mode}
    assert torch.equal(model.body[1].running_mean, before) is not train_mode
    assert not model.training


def test_frozen_parameters_stay_even_under_weight_decay(images: ImageSet) -> None:
    model = sample_network(images.shape)
    model.body[0].weight.requires_grad_(False)
    before = state_of(model)
    fit(model, images, Recipe(epochs=1, batch_size=16, learning_rate=0.1, weight_decay=0.1, ema=0), runtime())
    after = state_of(model)
    assert torch.equal(before["body.0.weight"], after["body.0.weight"])
    assert not torch.equal(before["body.7.weight"], after["body.7.weight"])


def test_a_loss_that_is_no_number_stops_training_with_a_sentence(images: ImageSet) -> None:
    class Breaks(Watch):
        def loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return super().loss(model, batch) * (math.nan if len(self.losses) == 4 else 1.0)

    hook = Breaks()
    with pytest.raises(UnbackdoorError, match=r"^fine: .*no longer a number in epoch 2.*learning rate"):
        fit(linear(), images, Recipe(epochs=5, batch_size=16, **PLAIN), runtime(), hook=hook, description="fine")
    assert len(hook.losses) == 6, "no epoch after the one that broke"


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"learning_rate": math.inf},
        {"momentum": -0.1},
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"weight_decay": -0.1},
        {"weight_decay": math.nan},
        {"weight_decay": math.inf},
        {"optimizer": "adam"},
        {"ema": 1.0},
        {"ema": -0.1},
        {"label_smoothing": 1.0},
        {"label_smoothing": math.nan},
        {"low_resolution": 1.1},
        {"augmentation": "nice"},
        {"schedule": "nice"},
    ],
    ids=str,
)
def test_recipes_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    refused(Recipe, options)
