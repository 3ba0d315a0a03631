"""FP removes the channels that sleep on clean samples, as many as held-out ones allow, and fine-tunes the rest."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.attacks.test_badnets import some
from tests.planted import network, pictures, planted, runtime
from unbackdoor.data import hold_out
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.models.vgg19_bn import VGG19BN
from unbackdoor.purify import FP
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.fp import activity, columns_of, reading_layer
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import new_network

PRUNING = FP(epochs=1, learning_rate=1e-12)
"""Fine-tuning that changes running statistics alone."""


@pytest.mark.parametrize(
    ("build", "name", "channels"),
    [(partial(PreActResNet18, width=4), "linear", 32), (partial(VGG19BN, width=4), "classifier.0", 32)],
)
def test_the_layer_that_reads_the_last_feature_maps_is_found(
    build: partial[nn.Module], name: str, channels: int
) -> None:
    model = new_network(build, some(shape=(3, 32, 32)), runtime())
    layer, found = reading_layer(model, runtime())
    assert layer is model.body.get_submodule(name)
    assert found == channels


def test_the_columns_of_a_channel_are_what_it_puts_into_the_vector() -> None:
    """Zeroing them is the same as a feature map of zeros."""
    model = copy.deepcopy(planted(1).suspect).eval()
    layer, channels = reading_layer(model, runtime())
    body = model.body
    assert isinstance(body, nn.Sequential)
    assert (layer, channels) == (body[-1], 24)
    images = pictures(9, 4).images.float() / 255
    with torch.no_grad():
        maps = body[:9](model.normalize(images))
        maps[:, [2, 5]] = 0
        expected = body[9:](maps)
        layer.weight[:, columns_of(torch.tensor([5, 2]), layer, channels)] = 0
        torch.testing.assert_close(model(images), expected)


def test_activity_is_the_mean_of_the_channels_maps() -> None:
    models = planted(1)
    model = models.suspect
    layer, channels = reading_layer(model, runtime())
    clean = models.data.need_clean("Test")
    body = model.body
    assert isinstance(body, nn.Sequential)
    with torch.no_grad():
        pooled = body[:10](model.normalize(clean.images.float() / 255))
    torch.testing.assert_close(activity(model, layer, channels, clean, runtime()), pooled.abs().mean((0, 2, 3)))


def removed_channels(model: Network) -> list[int]:
    layer, channels = reading_layer(model, runtime())
    return (layer.weight.abs().sum(0).view(channels, -1).sum(1) == 0).nonzero().flatten().tolist()


@pytest.mark.parametrize("tolerance", [0.0, 0.1, 0.5])
def test_the_most_are_removed_that_held_out_samples_allow_and_not_one_more(tolerance: float) -> None:
    """A slow loop over numbers of channels; published code keeps the step that went too far."""
    models = planted(2)
    kept, held = hold_out(models.data.need_clean("Test"), 0)
    model = copy.deepcopy(models.suspect)
    layer, channels = reading_layer(model, runtime())
    order = activity(model, layer, channels, kept, runtime()).argsort(stable=True)
    accuracy = [accuracy_on(model, held, runtime())]
    for channel in order:
        with torch.no_grad():
            layer.weight[:, columns_of(channel.view(1), layer, channels)] = 0
        accuracy.append(accuracy_on(model, held, runtime()))
    floor = (1 - tolerance) * accuracy[0]
    most = next((number - 1 for number, share in enumerate(accuracy) if share < floor), channels)
    repaired, history = FP(tolerance=tolerance, epochs=1, learning_rate=1e-12).purify(
        models.suspect, models.data, runtime()
    )
    (sweep,) = history.sweeps
    assert sweep.accuracy == pytest.approx(accuracy, abs=1e-6)
    assert round(sweep.chosen * channels) == most
    assert removed_channels(repaired) == sorted(order[:most].tolist())
    assert history.notes == (f"FP removed {most} of 24 channels of the last feature maps.",)


def test_removed_channels_stay_out_of_fine_tuning() -> None:
    models = planted(2)
    pruned, _ = PRUNING.purify(models.suspect, models.data, runtime())
    tuned, _ = FP(epochs=3, batch_size=32).purify(models.suspect, models.data, runtime())
    assert removed_channels(tuned) == removed_channels(pruned) != []
    assert not same_state(state_of(tuned), state_of(pruned))


def test_a_layer_that_is_not_the_last_is_measured_through_the_rest_of_the_network() -> None:
    model = network(3)
    body = model.body
    assert isinstance(body, nn.Sequential)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        deeper = Network(nn.Sequential(*body[:-1], nn.Linear(96, 16), nn.ReLU(), nn.Linear(16, 8)), model.description)
    clean = planted(1).data.need_clean("Test")
    _, held = hold_out(clean, 0)
    repaired, history = FP(tolerance=1.0, epochs=1, learning_rate=1e-12).purify(deeper, planted(1).data, runtime())
    (sweep,) = history.sweeps
    assert sweep.accuracy[0] == accuracy_on(copy.deepcopy(deeper), held, runtime())
    assert reading_layer(repaired, runtime()) == (repaired.body[-3], 24)  # type: ignore[index]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_planted_backdoor_is_weakened_and_accuracy_stays(seed: int) -> None:
    models = planted(seed)
    repaired, _ = FP(epochs=20, batch_size=32).purify(models.suspect, models.data, runtime(seed))
    before, after = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert after.asr.value < before.asr.value - 0.3
    assert after.acc.value > 0.95


def test_a_network_without_a_linear_layer_is_refused() -> None:
    model = network(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match=r"^FP removes .* linear"):
        FP(epochs=1).purify(Network(body, model.description), planted(1).data, runtime())


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="tolerance"):
        FP(tolerance=1.5)
