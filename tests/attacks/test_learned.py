"""Triggers that are learned together with a classifier, or by a network of their own."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, pictures, runtime
from tests.refusals import refused
from tests.training.test_resume import Stops
from unbackdoor.attacks import (
    BPP,
    LIRA,
    SSBA,
    Blind,
    FittedAttack,
    InputAware,
    Online,
    OnlineHook,
    Stamp,
    WaNet,
    load_attack,
    save_attack,
)
from unbackdoor.attacks.blind import PATTERN, BlindHook
from unbackdoor.attacks.generator import Generator, seeded
from unbackdoor.attacks.input_aware import InputAwareHook, OwnPatch, sameness, sharpened
from unbackdoor.attacks.lira import LearnedNoise, LIRAHook
from unbackdoor.attacks.online import weighted_loss
from unbackdoor.attacks.ssba import BITS, HiddenSecret
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, fit

RECIPE = Recipe(epochs=8, batch_size=40, learning_rate=0.05, ema=0.0, low_resolution=0.0, augmentation="none")
SMALL = {"InputAware": {"mask_steps": 60, "width": 8}, "LIRA": {"width": 8, "bound": 0.05}, "Blind": {"history": 20}}
STRONG: dict[str, Any] = {"WaNet": {"strength": 4.0, "poison_rate": 0.25}, "InputAware": {"poison_rate": 0.25}}
"""What these attacks need on 400 pictures of 12 x 12."""
ONLINE: list[Online] = [WaNet(), BPP(levels=3), Blind(), InputAware(), LIRA()]


def small(attack: Online) -> Online:
    name = type(attack).__name__
    return replace(attack, **SMALL.get(name, {}), **STRONG.get(name, {}))


def fitted(attack: Online) -> FittedAttack:
    return small(attack).prepare(pictures(400, 0), lambda: network(1), runtime())


def trained(attack: Online, **changes: Any) -> tuple[Network, FittedAttack]:
    """Return a network trained with the attack, and the attack."""
    made, model = fitted(attack), network(3)
    fit(model, made.train, replace(RECIPE, **changes), runtime(), hook=made.hook)
    return model, made


@pytest.mark.parametrize("attack", ONLINE, ids=lambda attack: type(attack).__name__)
def test_training_with_the_attack_leaves_a_backdoor_and_the_accuracy(attack: Online, tmp_path: Path) -> None:
    model, made = trained(attack, epochs=30)
    measured = evaluate(model, pictures(400, 9), runtime(), made.trigger, made.criterion)
    assert measured.asr
    assert measured.asr.value > 0.7
    assert measured.acc.value > 0.7
    save_attack(tmp_path / "a.safetensors", made, {})
    again = load_attack(tmp_path / "a.safetensors").trigger
    images = pictures(50, 4).images
    assert torch.equal(again.stamp(images), made.trigger.stamp(images)), "what was learned is what was saved"


@pytest.mark.parametrize("attack", ONLINE, ids=lambda attack: type(attack).__name__)
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(attack: Online, tmp_path: Path) -> None:
    recipe = replace(RECIPE, epochs=3)
    whole, first = network(3), fitted(attack)
    fit(whole, first.train, recipe, runtime(), hook=first.hook)
    model, second = network(3), fitted(attack)
    with pytest.raises(KeyboardInterrupt):
        fit(
            model, second.train, recipe, replace(runtime(), progress=Stops(15)), hook=second.hook, resume=tmp_path / "r"
        )
    model, third = network(3), fitted(attack)
    fit(model, third.train, recipe, runtime(), hook=third.hook, resume=tmp_path / "r")
    assert same_state(state_of(model), state_of(whole))
    assert same_state(state_of(third.trigger), state_of(first.trigger))


class Known(nn.Module):
    """A generator whose maps are known: a multiple of the mean of all inputs at each place, less for each output."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: Tensor) -> Tensor:
        factors = torch.tensor([3.0, -2.0, 1.0])[: self.outputs].view(1, -1, 1, 1)
        return factors * (images.mean(1, keepdim=True) - 0.4)


class Checkered(nn.Module):
    """A generator that makes a checkerboard of -1 and 1, whatever the image, and one larger value."""

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = (torch.arange(side) for side in images.shape[2:])
        made = (((rows[:, None] + columns) % 2) * 2.0 - 1).repeat(*images.shape[:2], 1, 1)
        made[..., 0, 0] = 3.0
        return made


def known_map(inputs: np.ndarray, output: int) -> float:
    """Return the same of the inputs at one place."""
    return float((3.0, -2.0, 1.0)[output] * (inputs.mean() - 0.4))


def test_learned_noise_is_its_formula_in_loops() -> None:
    images = pictures(4, 0).images.float() / 255
    made = LearnedNoise(Known(3), torch.tensor(0.3))(images)  # type: ignore[arg-type]
    for n, c, i, j in np.ndindex(*images.shape):
        raw = np.array([known_map(pixel, c) for pixel in images[n].flatten(1).T.numpy()])
        normal = (known_map(images[n, :, i, j].numpy(), c) - raw.mean()) / math.sqrt(raw.var() + 1e-5)
        expected = min(max(float(images[n, c, i, j]) + 0.3 * math.tanh(normal), 0), 1)
        assert float(made[n, c, i, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("side", [10, 12, 20])
def test_a_hidden_secret_is_its_formula_in_loops(side: int) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, side, side, generator=draws)
    secret = 2.0 * torch.randint(2, (BITS,), generator=draws) - 1
    made = HiddenSecret(Known(3), secret, torch.tensor(0.2))(images)  # type: ignore[arg-type]
    for n, c, i, j in np.ndindex(*images.shape):
        # Ten fields along each side, each as large as the next.
        bit = float(secret[10 * (i * 10 // side) + j * 10 // side])
        residual = math.tanh(known_map(np.array([*images[n, :, i, j].tolist(), bit]), c))
        expected = min(max(float(images[n, c, i, j]) + 0.2 * residual, 0), 1)
        assert float(made[n, c, i, j]) == pytest.approx(expected, abs=1e-6)


def test_an_own_patch_is_its_formula_in_loops() -> None:
    images = pictures(4, 0).images.float() / 255
    made = OwnPatch(Known(3), Known(1))(images)  # type: ignore[arg-type]
    for n, c, i, j in np.ndindex(*images.shape):
        place = images[n, :, i, j].numpy()
        pattern = math.tanh(known_map(place, c)) / 2 + 0.5
        mask = math.tanh(20 * (math.tanh(known_map(place, 0)) / 2 + 0.5) - 10) / 2 + 0.5
        before = float(images[n, c, i, j])
        assert float(made[n, c, i, j]) == pytest.approx(before + (pattern - before) * mask, abs=1e-5)


@pytest.mark.parametrize("attack", [Blind(cover_rate=0.1), LIRA(cover_rate=0.1)], ids=["Blind", "LIRA"])
def test_covers_of_an_attack_that_has_none_are_refused(attack: Online) -> None:
    with pytest.raises(InputError, match=f"{type(attack).__name__} has no covers; leave the cover rate at 0"):
        attack.prepare(pictures(80, 0), lambda: network(0), runtime())


def test_an_interrupted_mask_network_goes_on_to_the_same_masks(tmp_path: Path) -> None:
    attack, train = InputAware(mask_steps=7, width=4), pictures(300, 0)
    whole = attack.prepare(train, lambda: network(0), runtime())
    with pytest.raises(KeyboardInterrupt):
        attack.prepare(train, lambda: network(0), replace(runtime(), progress=Stops(7)), tmp_path)
    assert (tmp_path / "masks.pt").exists()
    resumed = attack.prepare(train, lambda: network(0), runtime(), tmp_path)
    assert same_state(state_of(resumed.trigger), state_of(whole.trigger))


def test_the_low_resolution_epochs_shrink_images_after_they_are_poisoned() -> None:
    sizes: list[tuple[int, int]] = []
    made = fitted(WaNet())
    assert made.hook
    hook = copy.copy(made.hook)
    hook.trigger = made.trigger
    original = type(hook).batch

    def batch(self: Any, model: nn.Module, given: Batch, generator: torch.Generator) -> Batch:
        sizes.append((given.images.shape[2], given.images.shape[3]))
        return original(self, model, given, generator)

    hook.batch = batch.__get__(hook)  # type: ignore[method-assign]
    model, seen = network(3), []
    handle = model.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[2:])))
    fit(model, made.train, replace(RECIPE, epochs=2, low_resolution=0.5), runtime(), hook=hook)
    handle.remove()
    assert set(sizes) == {(12, 12)}
    assert (9, 9) in seen
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize("attack", [InputAware(), LIRA()], ids=lambda attack: type(attack).__name__)
def test_what_learns_with_the_classifier_sees_shrunken_images_where_the_recipe_shrinks_them(attack: Online) -> None:
    made = fitted(attack)
    sides: dict[str, set[tuple[int, ...]]] = {"classifier": set(), "generator": set()}
    model, trigger = network(3), made.trigger
    assert isinstance(trigger, OwnPatch | LearnedNoise)
    generator = trigger.patterns if isinstance(trigger, OwnPatch) else trigger.noise
    for name, module in (("classifier", model), ("generator", generator)):
        module.register_forward_pre_hook(lambda _, inputs, name=name: sides[name].add(tuple(inputs[0].shape[2:])))
    fit(model, made.train, replace(RECIPE, epochs=2, low_resolution=1.0), runtime(), hook=made.hook)
    assert sides["generator"] == {(9, 9)}
    # The first is the trial of an image before the training.
    assert sides["classifier"] == {(12, 12), (9, 9)}


def test_the_weighted_loss_is_the_clean_mean_plus_the_weighted_poisoned_mean() -> None:
    logits = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(10) % 4
    batch = Batch(images=torch.zeros(10, 1, 1, 1), targets=labels, rows=torch.arange(10))
    losses = [-float(logits[i].log_softmax(0)[labels[i]]) for i in range(10)]
    expected = sum(losses[3:]) / 7 + 0.9 * sum(losses[:3]) / 3
    assert float(weighted_loss(logits, batch, 3, 0.9, 0.0)) == pytest.approx(expected, rel=1e-5)


# ---- Blind


def test_blind_stamps_its_pattern_at_its_place() -> None:
    train = pictures(80, 0)
    large = replace(train, images=torch.full((80, 3, 32, 32), 100, dtype=torch.uint8))
    made = Blind().prepare(large, lambda: network(0), runtime())
    assert isinstance(made.trigger, Stamp)
    stamped = made.trigger.stamp(large.images[:1])[0, 0]
    expected = [[100 if value is None else 255 * value for value in row] for row in PATTERN]
    assert stamped[3:8, 23:26].tolist() == expected
    assert int((stamped != 100).sum()) == 9


def test_blind_waits_until_the_mean_loss_is_small() -> None:
    made = Blind(history=3, threshold=1.0, poison_rate=0.5).prepare(pictures(80, 0), lambda: network(0), runtime())
    hook, data = made.hook, pictures(80, 0)
    assert isinstance(hook, BlindHook)
    hook.begin(network(0), Recipe(label_smoothing=0.0), runtime())
    batch = Batch(images=data.images[:20].float() / 255, targets=data.labels[:20], rows=torch.arange(20))

    class Says(nn.Module):
        def __init__(self, right: float) -> None:
            super().__init__()
            self.right = right

        def forward(self, images: Tensor) -> Tensor:
            return self.right * nn.functional.one_hot(batch.targets, 8).float()

    for right in (0.0, 9.0, 9.0):
        assert torch.equal(hook.batch(nn.Identity(), batch, torch.Generator()).images, batch.images)
        assert not hook.begun
        hook.loss(Says(right), batch)
    assert hook.begun, "(2.08 + 0 + 0) / 3 is below 1"
    poisoned = hook.batch(nn.Identity(), batch, torch.Generator())
    assert torch.equal(poisoned.images[:10], made.trigger(batch.images[:10]))
    assert torch.equal(poisoned.images[10:], batch.images[10:])


# ---- Input-aware


def test_masks_are_sharp_and_sameness_is_the_mean_quotient() -> None:
    values = torch.linspace(-3, 3, 13).view(13, 1, 1, 1)
    # In the two steps of the published code.
    opened = values.double().tanh() / 2 + 0.5
    expected = (20 * opened - 10).tanh() / 2 + 0.5
    torch.testing.assert_close(sharpened(values).double(), expected, atol=1e-6, rtol=0)
    generator = torch.Generator().manual_seed(0)
    x, y, a, b = torch.rand(4, 5, 2, 3, 3, generator=generator)
    quotients = [
        float(((x[i] - y[i]) ** 2).mean().sqrt() / (((a[i] - b[i]) ** 2).mean().sqrt() + 1e-7)) for i in range(5)
    ]
    assert float(sameness(x, y, a, b)) == pytest.approx(sum(quotients) / 5, rel=1e-5)
    same = a.clone().requires_grad_(True)
    sameness(x, y, same, a).backward()
    assert same.grad is not None
    assert bool(same.grad.isfinite().all())


def test_learned_masks_are_sparse_and_patterns_differ_from_image_to_image() -> None:
    _, made = trained(InputAware())
    trigger = made.trigger
    assert isinstance(trigger, OwnPatch)
    images = pictures(60, 5).images.float() / 255
    with torch.no_grad():
        masks, patterns = trigger.mask(images), trigger.pattern(images)
    assert 0.005 < float(masks.mean()) < 0.25
    assert float((patterns[:30] - patterns[30:]).abs().mean()) > 0.01


def test_an_image_s_trigger_does_not_work_through_another_image_s_cover() -> None:
    made = fitted(InputAware())
    assert made.hook
    made.hook.begin(network(0), RECIPE, runtime())
    data = pictures(40, 0)
    images = data.images.float() / 255
    batch = made.hook.batch(
        nn.Identity(), Batch(images=images, targets=data.labels, rows=torch.arange(40)), torch.Generator()
    )
    trigger, others = made.trigger, images[30:34]
    assert isinstance(trigger, OwnPatch)
    torch.testing.assert_close(batch.images[:10], trigger(images[:10]))
    expected = trigger.mixed(images[10:14], trigger.pattern(others), trigger.mask(others))
    torch.testing.assert_close(batch.images[10:14], expected)
    assert torch.equal(batch.targets[10:], data.labels[10:])


def test_patterns_of_poisoned_images_are_pushed_to_differ_from_each_other() -> None:
    made = fitted(InputAware(diversity=0.5))
    hook, trigger, model = made.hook, made.trigger, network(0)
    assert isinstance(hook, InputAwareHook)
    assert isinstance(trigger, OwnPatch)
    hook.begin(model, RECIPE, runtime())
    data = pictures(40, 0)
    images = data.images.float() / 255
    batch = hook.batch(
        model, Batch(images=images, targets=data.labels, rows=torch.arange(40)), torch.Generator().manual_seed(0)
    )
    assert hook.poisoned == 10
    patterns = trigger.pattern(images[:10])
    quotients = []
    for i in range(10):
        other = (i - 1) % 10
        x, y, a, b = images[i], images[other], patterns[i], patterns[other]
        quotients.append(float(((x - y) ** 2).mean().sqrt() / (((a - b) ** 2).mean().sqrt() + 1e-7)))
    plain = F.cross_entropy(model(batch.images), batch.targets, label_smoothing=RECIPE.label_smoothing)
    expected = float(plain) + 0.5 * sum(quotients) / 10
    assert float(hook.loss(model, batch)) == pytest.approx(expected, rel=1e-4)


# ---- LIRA


def test_noise_stays_within_its_bound_and_is_fixed_after_its_share_of_the_training() -> None:
    made = fitted(LIRA(learned=0.5))
    hook, trigger = made.hook, made.trigger
    assert isinstance(hook, LIRAHook)
    assert isinstance(trigger, LearnedNoise)
    model, data = network(0), pictures(40, 0)
    hook.begin(model, RECIPE, runtime())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    moved = []
    for progress in (0.0, 0.49, 0.51):
        before = state_of(trigger)
        batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(40), progress=progress)
        hook.update(model, hook.batch(model, batch, torch.Generator()), optimizer)
        moved.append(not same_state(state_of(trigger), before))
    assert moved == [True, True, False]
    images = data.images.float() / 255
    with torch.no_grad():
        assert float((trigger(images) - images).abs().max()) <= 0.05 + 1e-6


def test_success_is_measured_with_and_without_rounding() -> None:
    made = fitted(LIRA())
    # tanh(1) of the bound, up and down by turns: 0.46 of 255, which vanishes in 8 bits. Some pixel must change, though.
    small_noise = LearnedNoise(Checkered(), torch.tensor(0.6 / 255))  # type: ignore[arg-type]

    class SeesAHair(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            # Steps of 1 / 255 are what 8 bits hold; anything between them is the trigger.
            between = ((images * 255 - (images * 255).round()).abs() > 0.2).float().mean((1, 2, 3))
            return torch.stack([between, *[torch.full_like(between, 0.5)] * 7], 1)

    made = replace(made, trigger=small_noise)
    measured = evaluate(SeesAHair(), pictures(100, 2), runtime(), made.trigger, made.criterion)
    assert measured.asr
    assert measured.asr_unrounded
    assert measured.asr.value == 0
    assert measured.asr_unrounded.value == 1
    assert "asr_unrounded" in measured.to_json()


# ---- SSBA


def test_the_hidden_bits_can_be_read_and_the_change_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import unbackdoor.attacks.ssba as module

    pairs: list[nn.Module] = []
    original = module.prepare

    def spy(model: nn.Module, *arguments: Any) -> None:
        pairs.append(model)
        original(model, *arguments)

    monkeypatch.setattr(module, "prepare", spy)
    attack = SSBA(epochs=25, width=8, residual_weight=0.1, bound=0.2)
    made = attack.prepare(pictures(400, 0), lambda: network(0), runtime())
    trigger = made.trigger
    assert isinstance(trigger, HiddenSecret)
    images = pictures(60, 7).images.float() / 255
    with torch.no_grad():
        hidden = trigger(images)
        read = pairs[0](hidden) > 0
    right = (read == (trigger.secret > 0)).float().mean()
    assert float(right) > 0.6, "of 100 bits, half would be right by chance"
    assert float((hidden - images).abs().max()) <= 0.2 + 1e-6
    assert trigger.secret.shape == (BITS,)


def test_generators_depend_on_their_seeds_alone() -> None:
    before = torch.random.get_rng_state()
    made = []
    for seed in (1, 1, 2):
        with seeded(torch.Generator().manual_seed(seed)):
            made.append(Generator(3, 1, 8))
    first, again, other = made
    assert same_state(state_of(first), state_of(again))
    assert not same_state(state_of(first), state_of(other))
    assert torch.equal(torch.random.get_rng_state(), before)
    for size in ((12, 12), (7, 9), (33, 5)):
        assert first(torch.rand(2, 3, *size)).shape == (2, 1, *size)


@pytest.mark.parametrize(
    ("attack", "options"),
    [
        (Blind, {"weight": 0.0}),
        (Blind, {"threshold": 0.0}),
        (Blind, {"history": 0}),
        (InputAware, {"density": 1.0}),
        (InputAware, {"mask_steps": 0}),
        (InputAware, {"width": 6}),
        (LIRA, {"bound": 0.0}),
        (LIRA, {"weight": 1.0}),
        (LIRA, {"learned": 0.0}),
        (LIRA, {"width": 3}),
        (SSBA, {"bound": 0.0}),
        (SSBA, {"epochs": 0}),
        (SSBA, {"width": 6}),
    ],
)
def test_options_out_of_range_are_refused(attack: type[Any], options: dict[str, Any]) -> None:
    refused(lambda **given: attack(**given).prepare(pictures(80, 0), lambda: network(0), runtime()), options)


def test_the_pattern_network_learns_and_the_mask_network_does_not() -> None:
    made, model, data = fitted(InputAware()), network(0), pictures(40, 0)
    hook, trigger = made.hook, made.trigger
    assert hook
    assert isinstance(trigger, OwnPatch)
    hook.begin(model, RECIPE, runtime())
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    before = state_of(trigger)
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(40))
    hook.update(model, hook.batch(model, batch, torch.Generator().manual_seed(0)), optimizer)
    moved = {name.split(".")[0] for name, value in state_of(trigger).items() if not torch.equal(value, before[name])}
    assert moved == {"patterns"}
    gradients = [value.grad for value in trigger.patterns.parameters()]
    assert all(gradient is not None and bool((gradient != 0).any()) for gradient in gradients)


def test_small_rates_are_kept_on_average_and_one_row_stays_clean() -> None:
    hook = WaNet(poison_rate=0.001).prepare(pictures(40, 0), lambda: network(0), runtime()).hook
    greedy = WaNet(poison_rate=0.999, cover_rate=0.0).prepare(pictures(40, 0), lambda: network(0), runtime()).hook
    assert isinstance(hook, OnlineHook)
    assert isinstance(greedy, OnlineHook)
    data, draws, counts = pictures(40, 0), torch.Generator().manual_seed(0), []
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(40))
    for _ in range(1000):
        hook.batch(nn.Identity(), batch, draws)
        counts.append(hook.poisoned)
    assert set(counts) == {0, 1}
    assert 20 <= sum(counts) <= 65, "0.001 of 40,000 rows, give or take four standard deviations"
    greedy.batch(nn.Identity(), batch, draws)
    assert greedy.poisoned == 39


def test_an_interrupted_search_is_kept_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attack, train = SSBA(epochs=1, width=4), pictures(80, 0)
    first = attack.prepare(train, lambda: network(0), runtime(), tmp_path)
    monkeypatch.setattr("unbackdoor.attacks.ssba.prepare", lambda *_: pytest.fail("it is trained again"))
    again = attack.prepare(train, lambda: network(0), runtime(), tmp_path)
    assert torch.equal(again.train.images, first.train.images)
    assert torch.equal(again.train.labels, first.train.labels)
    assert torch.equal(again.kinds, first.kinds)
    assert torch.equal(again.trigger.stamp(train.images), first.trigger.stamp(train.images))
    for other in (replace(attack, poison_rate=0.2), replace(attack, bound=0.2)):
        with pytest.raises(pytest.fail.Exception):
            other.prepare(train, lambda: network(0), runtime(), tmp_path)
    with pytest.raises(pytest.fail.Exception):
        attack.prepare(train, lambda: network(0), runtime(1), tmp_path)
    with pytest.raises(pytest.fail.Exception):
        attack.prepare(pictures(80, 1), lambda: network(0), runtime(), tmp_path)
    path = tmp_path / "kept-images.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(pytest.fail.Exception):
        attack.prepare(train, lambda: network(0), runtime(), tmp_path)


def test_an_interrupted_encoder_goes_on_to_the_same_trigger(tmp_path: Path) -> None:
    attack, train = SSBA(epochs=3, width=4), pictures(300, 0)
    whole = attack.prepare(train, lambda: network(0), runtime())
    with pytest.raises(KeyboardInterrupt):
        attack.prepare(train, lambda: network(0), replace(runtime(), progress=Stops(7)), tmp_path)
    assert (tmp_path / "encoder.pt").exists()
    resumed = attack.prepare(train, lambda: network(0), runtime(), tmp_path)
    assert torch.equal(resumed.train.images, whole.train.images)


def test_masks_begin_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """From masks of one half, dark images come to rest where every mask is faint everywhere."""
    monkeypatch.setattr("unbackdoor.attacks.input_aware.prepare", lambda *_: None)
    images = pictures(60, 5).images.float() / 255
    for given in (images, 0.1 * images):
        trigger = fitted(InputAware()).trigger
        assert isinstance(trigger, OwnPatch)
        assert float(trigger.mask(given).median()) < 0.05
        assert float(trigger.mask(given).mean()) < 0.15
