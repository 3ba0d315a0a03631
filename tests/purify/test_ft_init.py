"""FT-init draws the last linear layer anew and then is plain fine-tuning without weight decay."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import CLASSES, SHAPE, network, pictures, planted, runtime
from tests.purify.test_ft import Nothing, sides_seen
from tests.training.test_resume import Stops
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import defense_effectiveness, evaluate
from unbackdoor.models import Network
from unbackdoor.purify import FTInit
from unbackdoor.purify.ft_init import draw_anew
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime


def test_a_new_layer_is_drawn_from_the_range_of_pytorch_and_by_the_generator_alone() -> None:
    layers = [nn.Linear(25, 4000) for _ in range(3)]
    for layer, seed in zip(layers, (0, 0, 1)):
        draw_anew(layer, torch.Generator().manual_seed(seed))
    for values in (layers[0].weight, layers[0].bias):
        assert float(values.min()) == pytest.approx(-0.2, abs=0.001)
        assert float(values.max()) == pytest.approx(0.2, abs=0.001)
        assert float(values.mean()) == pytest.approx(0, abs=0.01)
    assert torch.equal(layers[0].weight, layers[1].weight)
    assert not torch.equal(layers[0].weight, layers[2].weight)
    assert layers[0].weight.requires_grad


def test_a_layer_without_biases_is_drawn_too() -> None:
    layer = nn.Linear(4, 3, bias=False)
    before = layer.weight.detach().clone()
    draw_anew(layer, torch.Generator().manual_seed(0))
    assert not torch.equal(layer.weight, before)


def reference(suspect: Network, steps: int) -> nn.Module:
    """Draw the head anew and fine-tune on all images at once, as a plain loop."""
    model, clean = copy.deepcopy(suspect).train(), pictures(48, 3)
    head = model.body[-1]  # type: ignore[index]
    draw_anew(head, runtime().generator("new last layer"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.zero_grad()
        F.cross_entropy(model(clean.images.float() / 255), clean.labels).backward()
        optimizer.step()
    return model


def test_the_rest_equals_a_plain_loop_without_weight_decay() -> None:
    suspect = network(0)
    method = FTInit(epochs=3, batch_size=48, learning_rate=0.05, augmentation="none")
    repaired, history = method.purify(suspect, DefenderData(clean=pictures(48, 3)), runtime())
    assert history.epochs == 3
    expected = state_of(reference(suspect, 3))
    for name, value in state_of(repaired).items():
        torch.testing.assert_close(
            value, expected[name], atol=1e-4, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_nothing_of_the_old_head_is_left() -> None:
    suspect = network(0)
    louder = copy.deepcopy(suspect)
    with torch.no_grad():
        for parameter in louder.body[-1].parameters():  # type: ignore[index]
            parameter.mul_(7)
    method, data = FTInit(epochs=1, batch_size=24), DefenderData(clean=pictures(24, 3))
    results = [method.purify(model, data, runtime())[0] for model in (suspect, louder)]
    assert same_state(state_of(results[0]), state_of(results[1]))


def test_defaults_are_those_of_the_authors_command() -> None:
    assert FTInit() == FTInit(epochs=10, batch_size=128, learning_rate=0.01, augmentation="crop-flip")


def test_all_epochs_see_whole_images() -> None:
    # One image is looked at alone, to find the last layer.
    assert sides_seen(FTInit(epochs=2)) == {SHAPE}


@pytest.mark.parametrize("seed", [1, 4, 8])
def test_a_planted_backdoor_is_unlearned_and_accuracy_kept(seed: int) -> None:
    models = planted(seed)
    method = FTInit(epochs=20, batch_size=16, learning_rate=0.05, augmentation="crop")
    repaired, _ = method.purify(models.suspect, models.data, runtime(seed))
    before, after, nothing = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, Nothing().purify(models.suspect, models.data, runtime(seed))[0])
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.2
    assert after.acc.value > 0.95
    assert defense_effectiveness(before, after) > 0.9
    assert defense_effectiveness(before, nothing) == 0.5


def test_the_clean_twin_keeps_its_accuracy() -> None:
    models = planted(1)
    repaired, _ = FTInit(epochs=20, batch_size=16, augmentation="crop").purify(models.twin, models.data, runtime())
    assert evaluate(repaired, models.test, runtime()).acc.value > 0.97


def test_an_interrupted_repair_goes_on_with_the_same_head(tmp_path: Path) -> None:
    suspect, path, data = network(0), tmp_path / "resume.pt", DefenderData(clean=pictures(24, 3))
    method = FTInit(epochs=4, batch_size=12)
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(5)), resume=path)
    again, history = method.purify(suspect, data, runtime(), resume=path)
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


class Headless(nn.Module):
    """Tells classes apart by a convolution; its linear layer does something else."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3) if linear else None
        self.conv = nn.Conv2d(3, CLASSES, 3)

    def forward(self, images: Tensor) -> Tensor:
        if self.gate is not None:
            images = images * self.gate(images.mean((2, 3)))[:, :, None, None]
        return self.conv(images).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("linear", [False, True])
def test_a_network_that_does_not_end_in_a_linear_layer_is_refused(linear: bool) -> None:
    headless = Network(Headless(linear), network(0).description)
    with pytest.raises(InputError, match=r"FT-init draws the linear layer .* does not end in one"):
        FTInit(epochs=1).purify(headless, DefenderData(clean=pictures(24, 3)), runtime())


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"FT-init needs clean samples.*--clean"):
        FTInit().purify(network(0), DefenderData(), runtime())
