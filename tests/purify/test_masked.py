"""Masks scale the weights of batch normalisation, learn alone, and say what is pruned."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, pictures, planted, runtime
from tests.training.test_resume import Stops
from unbackdoor.errors import InputError, ResumeError
from unbackdoor.models import Network
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.masked import (
    THRESHOLDS,
    By,
    MaskedNetwork,
    MaskHook,
    check_values,
    mask_recipe,
    numbers,
    prune_by_mask,
)
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime, fit


def layers_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return list(norm_layers(model, "Test").values())


def masked_copy(seed: int = 0) -> tuple[MaskedNetwork, Network]:
    """Return a masked network with random biases, and a copy of what it masks."""
    model = network(seed).eval()
    with torch.no_grad():
        for layer in layers_of(model):
            layer.bias.copy_(torch.randn(len(layer.bias), generator=torch.Generator().manual_seed(seed)))
    plain = copy.deepcopy(model)
    return MaskedNetwork(model, norm_layers(model, "Test")).eval(), plain


def images(count: int = 16) -> Tensor:
    return pictures(count, 3).images.float() / 255


def random(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_a_copy_whose_weights_and_biases_are_multiplied(training: bool) -> None:
    masked, plain = masked_copy()
    weights, biases = random(60), 1 + random(60, 1)
    masked.train(training)
    plain.train(training)
    assert torch.equal(masked(images()), plain(images())), "masks of 1 change nothing"
    with torch.no_grad():
        for layer, weight, bias in zip(
            layers_of(plain), weights.split_with_sizes([12, 24, 24]), biases.split_with_sizes([12, 24, 24])
        ):
            layer.weight.mul_(weight)
            layer.bias.mul_(bias)
    torch.testing.assert_close(masked.scaled(images(), weights, biases), plain(images()))


def test_the_gradient_of_a_mask_is_its_weight_times_that_of_the_weight_and_there_is_no_other() -> None:
    masked, plain = masked_copy()
    labels = pictures(16, 3).labels
    F.cross_entropy(masked(images()), labels).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(plain(images()), labels).backward()  # type: ignore[no-untyped-call]
    expected = [layer.weight * layer.weight.grad for layer in layers_of(plain) if layer.weight.grad is not None]
    assert masked.mask.grad is not None
    torch.testing.assert_close(masked.mask.grad, torch.cat(expected).detach(), rtol=1e-4, atol=1e-6)
    assert [name for name, _ in masked.named_parameters()] == ["mask"]
    assert all(parameter.grad is None for parameter in masked.frozen[0].parameters())


def test_masks_learn_as_in_a_plain_loop_and_are_cut_to_the_unit_interval() -> None:
    masked, plain = masked_copy()
    clean = pictures(48, 3)
    weights = [layer.weight.detach().clone() for layer in layers_of(plain)]
    mask, moving = torch.ones(60), torch.zeros(60)
    for _ in range(4):
        for layer, weight, part in zip(layers_of(plain), weights, mask.split_with_sizes([12, 24, 24])):
            layer.weight.data = weight * part
        plain.train().zero_grad()
        (0.5 * F.cross_entropy(plain(clean.images.float() / 255), clean.labels)).backward()  # type: ignore[no-untyped-call]
        gradients = [layer.weight.grad for layer in layers_of(plain)]
        gradient = torch.cat([w * g for w, g in zip(weights, gradients) if g is not None])
        moving = 0.9 * moving + gradient
        mask = (mask - 20.0 * moving).clamp(0, 1)
    hook = MaskHook("options", masked, weight=0.5)
    fit(masked, clean, mask_recipe(4, 48, 20.0, "none"), runtime(), hook=hook)
    torch.testing.assert_close(masked.mask.detach(), mask, rtol=1e-3, atol=1e-4)
    assert 0 < int((mask == 0).sum()) < 60, "the bound below is met"
    assert int((mask == 1).sum()) > 0, "and that above"


def test_the_state_holds_the_masks_alone_and_belongs_to_one_network(tmp_path: Path) -> None:
    def run(seed: int, progress: Stops) -> Tensor:
        masked, _ = masked_copy(seed)
        going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
        recipe, hook = mask_recipe(4, 12, 1.0, "crop"), MaskHook("options", masked)
        fit(masked, pictures(24, 3), recipe, going, hook=hook, resume=tmp_path / "resume.pt")
        return masked.mask.detach()

    with pytest.raises(KeyboardInterrupt):
        run(0, Stops(5))
    assert (tmp_path / "resume.pt").stat().st_size < 10_000
    with pytest.raises(ResumeError, match="belongs to an interrupted run with other settings or data"):
        run(1, Stops())
    resumed = run(0, Stops())
    (tmp_path / "resume.pt").unlink()
    assert torch.equal(resumed, run(0, Stops()))


@pytest.mark.parametrize(
    ("by", "values", "expected"),
    [("threshold", (0.1, 0.3, 0.5, 2.0), [0.0, 0.1, 0.3, 0.5, 2.0]), ("number", (5, 9, 30, 61), [0.0, 5.0, 9.0, 30.0])],
)
def test_the_smallest_masks_are_pruned_as_far_as_accuracy_allows(
    by: By, values: tuple[float, ...], expected: list[float]
) -> None:
    models = planted(1)
    model, held = copy.deepcopy(models.suspect), models.data.need_clean("Test")
    mask = random(60, 2)
    sweep, note = prune_by_mask("Test", model, layers_of(model), mask, by, values, held, 0.3, runtime())
    assert list(sweep.values) == expected
    for value, share in zip(sweep.values, sweep.accuracy):
        trial = copy.deepcopy(models.suspect)
        order = mask.argsort()
        off = set(order[: int(value)].tolist()) if by == "number" else set((mask < value).nonzero().flatten().tolist())
        first = 0
        for layer in layers_of(trial):
            gone = [number - first for number in off if first <= number < first + layer.num_features]
            first += layer.num_features
            layer.weight.data[gone] = 0
        assert share == accuracy_on(trial, held, runtime())
        if value == sweep.chosen:
            assert same_state(state_of(trial), state_of(model)), "weights alone, biases stay"
            assert note == f"Test switched off {len(off)} of 60 channels of batch normalization."
    assert 0 < sweep.chosen < sweep.values[-1], "the case is no trivial one"


@pytest.mark.parametrize("by", ["threshold", "number"])
def test_with_no_allowance_and_useless_masks_the_model_may_stay_as_it_was(by: By) -> None:
    """Published code prunes masks of 0 in any case; the curve here begins with nothing."""
    models = planted(1)
    model, mask = copy.deepcopy(models.suspect), torch.zeros(60)
    held = models.data.need_clean("Test")
    sweep, _ = prune_by_mask("Test", model, layers_of(model), mask, by, (60.0,), held, 0.0, runtime())
    assert sweep.chosen == 0
    assert same_state(state_of(model), state_of(models.suspect))


def test_the_values_tried_are_those_of_published_code_and_finer_in_small_networks() -> None:
    assert THRESHOLDS[:3] == (0.0, 0.05, 0.1)
    assert THRESHOLDS[-1] == 0.9
    assert numbers(4800) == numbers(1000) == tuple(range(0, 1001, 20))
    assert numbers(60) == tuple(range(61))
    assert numbers(130) == tuple(range(0, 131, 2))


@pytest.mark.parametrize("values", [(0.2, 0.1), (0.1, 0.1), (-0.1, 0.2), (float("nan"),), (float("inf"),)])
def test_values_that_do_not_ascend_from_zero_are_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"^Test: values must be ascending numbers of 0 or more"):
        check_values("Test", "threshold", values)


def test_an_unknown_way_to_prune_is_refused() -> None:
    with pytest.raises(InputError, match=r"^Test: channels are pruned by threshold or number, found 'share'"):
        check_values("Test", "share", ())
