"""Weight changes of clean unlearning: which neurons count, how they are ranked, and what is reset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.planted import CLASSES, NAMES, network, pictures, planted, runtime
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import NETWORKS, Description, Network
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training.unlearning import unlearned
from unbackdoor.training.weight_change import (
    neuron_layers,
    neuron_weight_change,
    reset,
    reset_masks,
    weight_changes,
)


def wrapped(body: nn.Module) -> Network:
    return Network(body, network(0).description)


def image(size: int = 12) -> Tensor:
    return torch.zeros(1, 3, size, size)


def test_networks_have_the_neurons_of_their_convolutions_but_shortcuts() -> None:
    description = Description(
        architecture="PreActResNet18",
        arguments={},
        class_names=NAMES,
        image_shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model = Network(NETWORKS["PreActResNet18"](channels=3, classes=CLASSES), description).eval()
    layers = neuron_layers(model, image(32))
    # Most of its weights are in a classifier of three linear layers.
    vgg = neuron_layers(
        Network(NETWORKS["VGG19BN"](channels=3, classes=CLASSES, width=4), description).eval(), image(32)
    )
    assert len(vgg) == 16
    assert all(isinstance(layer, nn.Conv2d) for layer in vgg.values())
    beside = neuron_layers(Network(NETWORKS["WRN16x1"](channels=3, classes=CLASSES), description).eval(), image(32))
    assert not [name for name in beside if "hortcut" in name]
    assert len(layers) == 17
    assert sum(layer.weight.shape[0] for layer in layers.values() if isinstance(layer, nn.Conv2d)) == 3904


def test_linear_layers_count_where_most_weights_are_in_them_but_never_the_last() -> None:
    small = nn.Conv2d(3, 2, 3, padding=1)
    model = wrapped(nn.Sequential(small, nn.Flatten(), nn.Linear(2 * 144, 16), nn.ReLU(), nn.Linear(16, CLASSES)))
    assert list(neuron_layers(model, image())) == ["body.0", "body.2"]
    tokens = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1), nn.Flatten(2), nn.Linear(9, 40), nn.Linear(40, 9))
    mixed = wrapped(nn.Sequential(*tokens, nn.Flatten(), nn.Linear(36, 16), nn.Linear(16, CLASSES)))
    assert list(neuron_layers(mixed, image())) == ["body.0", "body.1", "body.3", "body.4"]
    assert list(neuron_layers(network(0), image())) == ["body.0", "body.3", "body.6"]


def test_a_network_of_one_linear_layer_has_no_neurons() -> None:
    model = wrapped(nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, CLASSES)))
    with pytest.raises(InputError, match="this network has none; choose another method"):
        neuron_layers(model, image())


def by_hand(changes: Sequence[np.ndarray], neurons: float, weights: float) -> list[np.ndarray]:
    """Return the masks, with plain sorting."""
    rows = [
        (-row.astype(float).sum(), layer, number) for layer, c in enumerate(changes) for number, row in enumerate(c)
    ]
    chosen = sorted(rows)[: int(neurons * len(rows) + 1e-9)]
    pool = sorted((value for _, layer, number in chosen for value in changes[layer][number]), reverse=True)
    count = int(weights * len(pool) + 1e-9)
    masks = [np.zeros(c.shape, dtype=bool) for c in changes]
    for _, layer, number in chosen if count else ():
        row = changes[layer][number]
        masks[layer][number] = (row >= pool[count - 1]) & (row > 0)
    return masks


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([0.01, 0.1, 0.3, 0.7, 1.0]), st.sampled_from([0.05, 0.5, 0.7, 1.0]))
def test_masks_equal_those_by_plain_sorting(seed: int, neurons: float, weights: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that there are ties among neurons and among weights.
    changes = [torch.randint(0, 5, size, generator=generator).float() for size in ((4, 6), (3, 18), (7, 2))]
    found = reset_masks(changes, neurons, weights)
    for mask, expected in zip(found, by_hand([c.numpy() for c in changes], neurons, weights), strict=True):
        np.testing.assert_array_equal(mask.numpy(), expected)


def test_a_change_is_the_sum_over_a_filters_weights_not_their_mean() -> None:
    """Rounding to four decimals, as in the published code, would make ties of these."""
    changes = [torch.full((2, 4), 1e-6), torch.full((1, 9), 0.9e-6)]
    changes[0][1] += 1e-9
    total = neuron_weight_change(changes)
    assert total.tolist() == pytest.approx([4e-6, 4.004e-6, 8.1e-6], rel=1e-5)
    assert [bool(mask.any(1)[-1]) for mask in reset_masks(changes, 0.4, 1.0)] == [False, True]
    assert reset_masks(changes, 0.7, 1.0)[0].any(1).tolist() == [False, True]


def test_what_did_not_change_is_not_reset() -> None:
    changes = [torch.zeros(4, 3), torch.tensor([[0.0, 0.0, 2.0]])]
    masks = reset_masks(changes, 1.0, 1.0)
    assert not masks[0].any()
    assert masks[1].tolist() == [[False, False, True]]


def test_reset_sets_just_these_weights_of_the_original_to_zero() -> None:
    model, before = network(0), network(0)
    masks = [torch.zeros(12, 27, dtype=torch.bool), torch.zeros(24, 108, dtype=torch.bool)]
    masks[0][3, 5], masks[1][20, 100] = True, True
    reset(model, ["body.0", "body.3"], masks)
    for name, value in before.state_dict().items():
        changed = (model.state_dict()[name] != value).nonzero()
        assert len(changed) == (name in ("body.0.weight", "body.3.weight")), name
    assert float(model.get_parameter("body.0.weight").flatten(1)[3, 5]) == 0.0
    assert float(model.get_parameter("body.3.weight").flatten(1)[20, 100]) == 0.0


def unlearning(samples: ImageSet, model: Network, epochs: int, rate: float = 1e-3) -> tuple[Network, int]:
    recipe = fine_tuning(epochs, 60, rate, "none", "constant", 0.0)
    forgetful, history = unlearned(model, samples, recipe, runtime(), enough=0.125)
    return forgetful, history.epochs


def test_unlearning_is_in_float32_whatever_the_precision() -> None:
    """For whoever unlearns: what they look at are small differences between weights."""
    recipe = fine_tuning(2, 12, 1e-2, "none", "constant", 0.0)
    exact, mixed = (
        state_of(unlearned(network(0), pictures(24, 3), recipe, one, enough=0.0)[0])
        for one in (runtime(), replace(runtime(), precision="bf16"))
    )
    assert same_state(exact, mixed)
    assert not same_state(exact, state_of(network(0)))


def test_one_step_of_unlearning_is_one_of_ascent() -> None:
    model, clean = network(0), pictures(24, 3)
    recipe = fine_tuning(1, 24, 0.1, "none", "constant", 0.0)
    forgetful, _ = unlearned(model, clean, recipe, runtime(), enough=0.0)
    plain = network(0).train()
    loss = nn.functional.cross_entropy(plain(clean.images.float() / 255), clean.labels)
    loss.backward()
    names = [name for name, _ in plain.named_parameters()]
    for name in names:
        start, gradient = plain.get_parameter(name), plain.get_parameter(name).grad
        assert gradient is not None
        torch.testing.assert_close(forgetful.get_parameter(name), start + 0.1 * gradient, atol=1e-6, rtol=1e-4)
    changes = weight_changes(plain, forgetful, ["body.3"])
    weight = plain.get_parameter("body.3.weight")
    assert weight.grad is not None
    torch.testing.assert_close(changes[0], (0.1 * weight.grad).abs().flatten(1), atol=1e-6, rtol=1e-4)


def test_unlearning_ends_at_chance_and_leaves_the_model_as_it_was() -> None:
    models = planted(1)
    before = state_of(models.suspect)
    clean = models.data.need_clean("this test")
    forgetful, epochs = unlearning(clean, models.suspect, 200)
    assert 1 < epochs < 200
    assert accuracy_on(forgetful, clean, runtime()) < 0.5 < accuracy_on(models.suspect, clean, runtime())
    assert same_state(before, state_of(models.suspect))


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_neurons_that_forget_clean_samples_are_those_that_forget_triggered_ones(seed: int) -> None:
    """The first observation of the paper, in ranks: both changes go together."""
    models = planted(seed)
    clean = models.data.need_clean("this test")
    images = models.fitted.trigger(clean.images.float() / 255)
    triggered = ImageSet(
        images=(images * 255).round().to(torch.uint8),
        labels=torch.full_like(clean.labels, models.target),
        class_names=NAMES,
        name="triggered",
    )
    found = []
    for samples in (clean, triggered):
        forgetful, _ = unlearning(samples, models.suspect, 30)
        found.append(neuron_weight_change(weight_changes(models.suspect, forgetful, ["body.0", "body.3", "body.6"])))
    ranks = torch.stack([change.argsort().argsort().double() for change in found])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.4
