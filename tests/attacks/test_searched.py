"""Triggers that are searched in a clean model do there what they are searched for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, pictures, runtime
from tests.refusals import refused
from unbackdoor.attacks import (
    LF,
    AdaptiveTrap,
    Additive,
    Attack,
    FittedAttack,
    Given,
    Invisible,
    LabelConsistent,
    Stamp,
    TrojanNN,
)
from unbackdoor.attacks.label_consistent import move_away
from unbackdoor.attacks.preparation import clean_model
from unbackdoor.attacks.trojannn import NEURONS
from unbackdoor.data import ImageSet
from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models import Network, last_linear
from unbackdoor.training import Recipe, fit

RECIPE = Recipe(epochs=6, batch_size=32, learning_rate=0.05, ema=0.0, low_resolution=0.0, augmentation="none")


@lru_cache(maxsize=1)
def clean() -> Network:
    """Return a clean model of the planted pictures."""
    model = network(5)
    fit(model, pictures(600, 0), RECIPE, runtime())
    return model.eval().requires_grad_(False)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every attack search in that model."""
    for module in ("lf", "trojannn", "label_consistent", "invisible"):
        monkeypatch.setattr(f"unbackdoor.attacks.{module}.clean_model", lambda *_: clean())


def given(train: ImageSet, build_model: Callable[[], Network] = lambda: network(0), work: Path | None = None) -> Given:
    return Given(train=train, build_model=build_model, runtime=runtime(), work=work)


def fitted(attack: Attack) -> FittedAttack:
    return attack.prepare(pictures(600, 0), lambda: network(1), runtime())


def share_called(images: Tensor, target: int) -> float:
    return float((clean()(images).argmax(1) == target).float().mean())


@pytest.mark.parametrize("target", [0, 4])
@pytest.mark.usefixtures("known")
def test_the_low_frequency_pattern_turns_more_images_than_a_random_one(target: int) -> None:
    images = pictures(200, 9).images.float() / 255
    attack = LF(target=target, steps=60, amplitude=0.4)
    searched, random = fitted(attack).trigger, fitted(replace(attack, steps=0)).trigger
    assert isinstance(searched, Additive)
    assert float(searched.signal.min()) == pytest.approx(0, abs=1e-6)
    assert float(searched.signal.max()) == pytest.approx(0.4)
    assert share_called(searched(images), target) > 0.5 + share_called(random(images), target) / 2


@pytest.mark.usefixtures("known")
def test_the_shape_excites_the_two_neurons_with_the_largest_weights() -> None:
    last = last_linear(clean(), pictures(1, 0).images.float() / 255)
    assert last
    neurons = last.weight.abs().sum(0).topk(NEURONS).indices

    def excitement(attack: TrojanNN) -> float:
        trigger = fitted(attack).trigger
        assert isinstance(trigger, Stamp)
        inside = trigger.mask[0] > 0
        assert bool((trigger.pattern[:, inside] >= 0.7 - 1e-6).all()), "a pixel stays within 0.3 of white"
        seen: list[Tensor] = []
        with last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
            clean()((trigger.mask * trigger.pattern)[None])
        return float(seen[0][0, neurons].sum())

    assert excitement(TrojanNN(steps=50)) > excitement(TrojanNN(steps=0)) + 0.05
    assert not any(module._forward_pre_hooks for module in clean().modules())


def test_a_network_without_a_linear_layer_is_refused() -> None:
    model = Network(nn.Sequential(nn.Conv2d(3, 8, 12), nn.Flatten()), network(0).description)
    with pytest.raises(InputError, match="Network has no linear layer"):
        TrojanNN(steps=1).excite(model, torch.ones(1, 12, 12), torch.ones(1, 3, 12, 12), runtime())


def test_the_neurons_are_the_inputs_of_the_layer_that_runs_last_wherever_it_is_named() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(3, 8)
            self.first = nn.Linear(3 * 144, 3)
            self.unused = nn.Linear(2000, 2)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.last(self.first(images.flatten(1)))
            return logits

    head = Head().requires_grad_(False)
    head.first.weight.zero_()
    head.last.weight.zero_()
    # Two neurons count; the second of them sees the upper left pixel, and the third neuron another.
    head.last.weight[:, :2] = 1.0
    head.first.weight[1, 0], head.first.weight[2, 5] = -1.0, -1.0
    model = Network(head, network(0).description).eval()
    found = TrojanNN(steps=3).excite(model, torch.ones(1, 12, 12), torch.ones(1, 3, 12, 12), runtime())
    assert float(found[0, 0, 0, 0]) == pytest.approx(0.7)
    assert float(found[0, 0, 0, 5]) == 1


@pytest.mark.usefixtures("known")
def test_adversarial_images_stay_in_the_bound_and_are_hard_to_recognise() -> None:
    data, bound = pictures(64, 3), 24 / 255
    moved = move_away(clean(), data.images, data.labels, bound, 10, runtime(), torch.Generator().manual_seed(0))
    assert int((moved.int() - data.images.int()).abs().max()) <= 24
    with torch.no_grad():
        before = F.cross_entropy(clean()(data.images.float() / 255), data.labels)
        after = F.cross_entropy(clean()(moved.float() / 255), data.labels)
    assert float(after) > float(before) + 1


@pytest.mark.usefixtures("known")
def test_label_consistent_training_images_are_moved_and_patched_and_testing_patches_alone() -> None:
    made = fitted(LabelConsistent(bound=24 / 255))
    train, rows = pictures(600, 0), (made.kinds == 1).nonzero().flatten()
    assert len(rows) == 30
    assert set(train.labels[rows].tolist()) == {0}
    assert torch.equal(made.train.labels, train.labels)
    trigger = made.trigger
    assert isinstance(trigger, Stamp)
    outside = (trigger.mask == 0).expand(3, -1, -1)
    stamped = trigger.stamp(train.images[rows])
    assert torch.equal(stamped[:, outside], train.images[rows][:, outside])
    assert torch.equal(made.train.images[rows][:, ~outside], stamped[:, ~outside])
    change = (made.train.images[rows].int() - train.images[rows].int()).abs()[:, outside]
    assert 5 < int(change.max()) <= 24


@pytest.mark.parametrize("patch", ["checker", "grid", "square"])
def test_the_patch_is_mirrored_from_corner_to_corner(patch: Literal["checker", "grid", "square"]) -> None:
    train = pictures(80, 0)
    grey = replace(train, images=torch.full((80, 3, 32, 32), 100, dtype=torch.uint8))
    made = LabelConsistent(patch=patch, steps=0).prepare(grey, lambda: pytest.fail("no model is needed"), runtime())
    stamped = made.trigger.stamp(grey.images[:1])[0]
    drawn = {
        "square": [[255, 255, 255], [255, 255, 255], [255, 255, 255]],
        "grid": [[0, 0, 255], [0, 255, 0], [255, 0, 255]],
        "checker": [[255, 0, 255], [0, 255, 0], [255, 0, 255]],
    }[patch]
    corner = torch.tensor(drawn, dtype=torch.uint8)
    for channel in stamped:
        assert torch.equal(channel[29:, 29:], corner)
        assert torch.equal(channel[29:, :3], corner.flip(1))
        assert torch.equal(channel[:3, 29:], corner.flip(0))
        assert torch.equal(channel[:3, :3], corner.flip(0, 1))
    assert int((stamped != 100).sum()) == 3 * 36


@pytest.mark.usefixtures("known")
def test_an_invisible_trigger_is_as_small_as_asked_and_reads_as_the_target() -> None:
    images = pictures(200, 9).images.float() / 255
    long = fitted(Invisible(length=8.0, target=3, steps=100)).trigger
    assert isinstance(long, Additive)
    # Lengths and numbers are for 32 x 32 pixels; these images have 12 x 12.
    assert float(long.signal.norm()) <= 8.0 * 12 / 32 + 1e-4
    assert share_called(long(images), 3) > 0.5
    few = fitted(Invisible(norm="l0", pixels=200, target=3, steps=100)).trigger
    assert isinstance(few, Stamp)
    assert float(few.mask.sum()) == round(200 * 144 / 1024)
    with torch.no_grad():
        before, after = (clean()(one).softmax(1)[:, 3].mean() for one in (images, few(images)))
    assert float(after) > 1.5 * float(before)


def test_the_clean_model_of_a_file_is_taken_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from unbackdoor.data import read_images
    from unbackdoor.models import Description, build_network, save_model

    digits = read_images("digits", "test")
    description = Description(
        architecture="PreActResNet18",
        arguments={"width": 4},
        class_names=digits.class_names,
        image_shape=digits.shape,
        mean=(0.5,),
        std=(0.2,),
    )
    path = tmp_path / "clean.safetensors"
    save_model(path, build_network(description, seed=1), provenance={})
    taken = clean_model(path, given(digits, lambda: pytest.fail("no other is trained")))
    assert not taken.training
    assert not any(parameter.requires_grad for parameter in taken.parameters())
    with pytest.raises(InputError, match="has images of"):
        clean_model(path, given(pictures(20, 0)))
    with pytest.raises((CheckpointError, InputError)):
        clean_model(tmp_path / "none.pt", given(digits))


def test_a_clean_model_that_was_trained_once_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.attacks.preparation.RECIPE", RECIPE)
    train = pictures(100, 0)
    first = clean_model(None, given(train, work=tmp_path))
    monkeypatch.setattr("unbackdoor.training.loop._Run.epoch", lambda *_: pytest.fail("it is trained again"))
    again = clean_model(None, given(train, work=tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize("target", [0, 3])
@pytest.mark.usefixtures("known")
def test_the_adaptive_trigger_brings_features_nearer_to_the_target_and_still_turns_images(target: int) -> None:
    stem, _ = clean().split("3")
    train, images = pictures(600, 0), pictures(200, 9).images.float() / 255
    mean = stem(train.images[train.labels == target].float() / 255).mean(0)

    def triggered(attack: Attack) -> Tensor:
        return fitted(attack).trigger(images)

    def distance(changed: Tensor) -> float:
        return float((stem(changed) - mean).square().sum((1, 2, 3)).mean())

    nearest, nearer, plain = (
        triggered(AdaptiveTrap(length=16.0, target=target, steps=50, head="3", weight=weight))
        for weight in (20.0, 1.0, 0.0)
    )
    assert torch.equal(plain, triggered(Invisible(length=16.0, target=target, steps=50)))
    assert distance(nearest) < 0.9 * distance(plain)
    assert distance(nearer) < distance(plain)
    assert share_called(plain, target) > 0.8
    assert share_called(nearer, target) > 0.5


@pytest.mark.usefixtures("known")
def test_the_penalty_is_one_for_clean_images_on_average_and_equals_a_plain_computation() -> None:
    train = pictures(64, 0)
    penalty = AdaptiveTrap(target=2, weight=3.0, head="6").penalty(clean(), given(train))
    stem, _ = clean().split("6")
    images = train.images.float() / 255
    with torch.no_grad():
        features = stem(images).double()
        mean = features[train.labels == 2].mean(0)
        distances = torch.stack([((one - mean) ** 2).sum() for one in features])
        assert float(penalty(images)) == pytest.approx(3.0, rel=1e-4)
        assert float(penalty(images[:5])) == pytest.approx(3 * float(distances[:5].mean() / distances.mean()), rel=1e-4)


def test_an_adaptive_attack_without_images_of_its_target_or_with_a_bad_weight_is_refused() -> None:
    train = pictures(64, 0)
    train = train.subset((train.labels != 2).nonzero().squeeze(1))
    with pytest.raises(InputError, match="has no image of class 2"):
        AdaptiveTrap(target=2, head="6").penalty(clean(), given(train))
    with pytest.raises(InputError, match="the weight must be a number of 0 or more"):
        AdaptiveTrap(weight=-1.0).penalty(clean(), given(train))


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (LF, {"amplitude": 0.0}),
        (LF, {"steps": -1}),
        (LF, {"batch_size": 0}),
        (TrojanNN, {"opacity": 0.0}),
        (TrojanNN, {"step_size": 0.0}),
        (TrojanNN, {"shape": "pear"}),
        (LabelConsistent, {"bound": -0.1}),
        (LabelConsistent, {"opacity": 2.0}),
        (Invisible, {"norm": "l1"}),
        (Invisible, {"length": 0.0}),
        (Invisible, {"pixels": 0}),
    ],
)
def test_options_out_of_range_are_refused_before_any_search(attack: type[Any], options: dict[str, Any]) -> None:
    refused(
        lambda **given: attack(**given).prepare(pictures(100, 0), lambda: pytest.fail("no model is needed"), runtime()),
        options,
    )
