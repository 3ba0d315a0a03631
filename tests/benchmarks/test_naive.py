"""The steps of ours are those of the plain purifiers that they are timed beside, in float32 and without augmentation.

Batches hold all samples wherever order must not matter. The plain ones were written from what papers and published code
say, so an error in either shows here.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.naive import (
    NAIVE,
    anp,
    bnp,
    clp,
    common,
    ep,
    ft_sam,
    i_bau,
    masks,
    mcr,
    nad,
    nc_unlearning,
    npd,
    sau,
    tsbd,
)
from benchmarks.naive import purify as plainly
from benchmarks.naive import rnp as plain_rnp
from tests.planted import NAMES, SHAPE, network, pictures, planted, runtime
from tests.purify.test_npd import staged
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.models import Description, Edit, Network, build_network, feature_map_names, insert_plug
from unbackdoor.purify import (
    ANP,
    BNP,
    CLP,
    EP,
    FP,
    FT,
    FTSAM,
    IBAU,
    NAD,
    NPD,
    PURIFIERS,
    RNP,
    SAU,
    TSBD,
    Purifier,
)
from unbackdoor.purify import i_bau as our_i_bau
from unbackdoor.purify import sau as our_sau
from unbackdoor.purify.anp import _Adversarial
from unbackdoor.purify.bnp import clean_statistics, divergence
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.ep import entropies
from unbackdoor.purify.frozen import Frozen
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.masked import MaskedNetwork, mask_recipe, prune_by_mask
from unbackdoor.purify.mcr import _Curve
from unbackdoor.purify.nad import _Distillation
from unbackdoor.purify.npd import _Polarizing, _WarmUp
from unbackdoor.purify.tsbd import _AgainstActiveNeurons
from unbackdoor.scan import NeuralCleanse
from unbackdoor.scan.lipschitz import channel_lipschitz
from unbackdoor.scan.neural_cleanse import _Search
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.training import Batch
from unbackdoor.training.unlearning import unlearned
from unbackdoor.training.weight_change import neuron_layers, reset, reset_masks, weight_changes

CPU = torch.device("cpu")
RECIPE = fine_tuning(1, 64, 0.05, "none")


def used(seed: int = 0) -> Network:
    """Return a small network with biases and statistics that are not those of the start."""
    model = network(seed).train()
    with torch.no_grad():
        for layer in norm_layers(model, "Test").values():
            layer.bias.copy_(0.3 * torch.randn(len(layer.bias), generator=torch.Generator().manual_seed(seed)))
        for _ in range(20):
            model(pictures(64, 5).images.float() / 255)
    return model.eval()


def plain_layout(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.contiguous_format)


def batch_of(samples: ImageSet) -> Batch:
    return Batch(images=samples.images.float() / 255, targets=samples.labels, rows=torch.arange(len(samples)))


def nearly(ours: nn.Module, naive: nn.Module, rtol: float = 1e-3, atol: float = 1e-5, buffers: bool = True) -> None:
    """Require that two models have the same weights and, unless told otherwise, running statistics."""
    theirs = dict(naive.state_dict() if buffers else naive.named_parameters())
    for name, value in (ours.state_dict() if buffers else dict(ours.named_parameters())).items():
        # How often batch normalisation ran decides nothing.
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, theirs[name], rtol=rtol, atol=atol, msg=name)


def moved(after: nn.Module, before: nn.Module) -> float:
    pairs = zip(after.parameters(), before.parameters())
    return max(float((one - other).detach().abs().max()) for one, other in pairs)


def both(method: Purifier, model: Network, clean: ImageSet) -> tuple[Network, Network]:
    """Return what ours and the plain one make of a model."""
    ours, _ = method.purify(model, DefenderData(clean=clean), runtime())
    naive, _ = plainly(method, model, clean, 0, CPU)
    return ours, naive


def test_the_plain_ones_are_of_purifiers_that_there_are() -> None:
    assert set(NAIVE) <= set(PURIFIERS)


# ---- samples


def test_every_sample_comes_once_an_epoch_as_it_is() -> None:
    clean = pictures(20, 0)
    samples = common.Samples(clean, "none", CPU, 0)
    images, labels = (torch.cat(parts) for parts in zip(*samples.batches(8, shuffle=False)))
    assert torch.equal(images, clean.images.float() / 255)
    assert torch.equal(labels, clean.labels)
    shuffled = [images for images, _ in samples.batches(8)]
    assert [len(part) for part in shuffled] == [8, 8, 4]
    assert not torch.equal(torch.cat(shuffled), images)
    assert torch.equal(torch.cat(shuffled).flatten(1).sum(1).sort().values, images.flatten(1).sum(1).sort().values)


def test_crops_and_flips_are_those_of_a_padded_image() -> None:
    clean = pictures(1, 0)
    samples = common.Samples(clean, "crop-flip", CPU, 0)
    padded = nn.functional.pad(clean.images.float() / 255, (4, 4, 4, 4))
    windows = padded.unfold(2, 12, 1).unfold(3, 12, 1).permute(0, 2, 3, 1, 4, 5).reshape(81, 3, 12, 12)
    wanted = torch.cat([windows, windows.flip(3)])
    drawn = torch.stack([samples.one(0) for _ in range(400)])
    same = (drawn.flatten(1)[:, None] == wanted.flatten(1)).all(2)
    assert bool((same.sum(1) == 1).all())
    assert int(same.any(0).sum()) > 120, "nearly all are drawn"


# ---- whole methods, where no draw decides


@pytest.mark.parametrize(
    "method",
    [
        FT(epochs=5, batch_size=96, learning_rate=0.05, augmentation="none"),
        FTSAM(epochs=5, batch_size=96, learning_rate=0.02, rho=0.5, augmentation="none"),
        IBAU(rounds=2, batch_size=96, perturbed=1.0, perturbation_rate=1.0),
        SAU(rounds=3, batch_size=96, learning_rate=1e-3),
    ],
    ids=lambda method: type(method).__name__,
)
def test_ours_ends_where_the_plain_one_does(method: Purifier) -> None:
    model, clean = used(), pictures(96, 0)
    ours, naive = both(method, model, clean)
    assert moved(ours, model) > 1e-3
    # Adam divides by the gradient's size, so that the smallest ones count as much; FT-SAM climbs far.
    tolerance = {IBAU: (0.02, 2e-4), SAU: (0.02, 2e-4), FTSAM: (1e-3, 1e-4)}.get(type(method), (1e-3, 1e-5))
    nearly(ours, naive, *tolerance)


@pytest.mark.parametrize("method", [CLP(), BNP(), CLP(choose=False, u=1.0), BNP(choose=False, u=1.0)], ids=repr)
def test_pruning_by_outliers_switches_off_the_same_channels(method: Purifier) -> None:
    made = planted(0)
    assert made.data.clean is not None
    ours, naive = both(method, made.suspect, made.data.clean)
    nearly(ours, naive, rtol=0, atol=0)


@pytest.mark.parametrize("method", [EP(choose=False, u=1.5), EP(allowance=0.1), EP(width=0.3)], ids=repr)
def test_ep_switches_off_the_same_channels(method: EP) -> None:
    made = planted(1)
    assert made.data.clean is not None
    untrusted = made.fitted.train
    given = DefenderData(clean=made.data.clean, untrusted=untrusted)
    ours, history = method.purify(made.suspect, given, runtime())
    naive, _ = plainly(method, made.suspect, made.data.clean, 0, CPU, untrusted)
    nearly(ours, naive, rtol=0, atol=0)
    if not method.choose:
        assert moved(ours, made.suspect) > 0
        assert "EP switched off" in history.notes[-1]


def test_entropies_of_ep_equal_where_a_channel_does_not_vary_too() -> None:
    values = torch.randn(5, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[2] = 3.0
    found = ep.entropies(values, 0.1)
    torch.testing.assert_close(found, entropies(values, 0.1))
    assert float(found[2]) == pytest.approx(float(found[[0, 1, 3, 4]].mean()))


def test_fp_removes_the_same_channels_and_keeps_them_out() -> None:
    clean = pictures(120, 0)
    learning = FT(epochs=12, batch_size=40, learning_rate=0.1, augmentation="none")
    model, _ = learning.purify(staged("PreActResNet18"), DefenderData(clean=clean), runtime())
    method = FP(tolerance=0.3, epochs=4, batch_size=120, learning_rate=0.05, augmentation="none")
    ours, naive = both(method, model, clean)
    off = (ours.body.get_submodule("linear").weight == 0).all(0)
    assert 0 < int(off.sum()) < len(off), "some are removed and some are not, or this test shows little"
    nearly(ours, naive, rtol=0.01, atol=1e-4)
    assert moved(ours, model) > 1e-3


def test_a_pruning_that_is_compared_prunes() -> None:
    made = planted(0)
    ours, _ = BNP(choose=False, u=1.0).purify(made.suspect, made.data, runtime())
    assert moved(ours, made.suspect) > 0


# ---- the parts of the methods


def test_steps_of_tsbd_equal() -> None:
    model, batch = used(), batch_of(pictures(64, 0))
    ours, naive = copy.deepcopy(model).train(), plain_layout(model).train()
    method = TSBD()
    optimizer = torch.optim.SGD(ours.parameters(), 0.0)
    hook = _AgainstActiveNeurons(method.radius, method.alpha)
    hook.begin(ours, RECIPE, runtime())
    hook.update(ours, batch, optimizer)
    wanted = tsbd.gradients(method, naive, batch.images, batch.targets)
    for parameter, gradient in zip(ours.parameters(), wanted):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("neurons", [0.01, 0.1, 0.35, 1.0])
def test_tsbd_resets_the_same_weights(neurons: float) -> None:
    before, after = used(0), used(1)
    names = list(neuron_layers(before, pictures(1, 0).images.float() / 255))
    ours, naive = copy.deepcopy(before), copy.deepcopy(before)
    reset(ours, names, reset_masks(weight_changes(before, after, names), neurons, 0.7))
    tsbd.reset(naive, tsbd.weight_changes(before, after), neurons, 0.7)
    nearly(ours, naive, rtol=0, atol=0)
    share = sum(int((one.weight == 0).sum()) for one in ours.modules() if isinstance(one, nn.Conv2d))
    weights = sum(one.weight.numel() for one in ours.modules() if isinstance(one, nn.Conv2d))
    assert share == 0 if neurons == 0.01 else 0 < share <= 0.7 * weights + 1


def test_unlearning_of_tsbd_equals_while_it_goes_on() -> None:
    model, clean = copy.deepcopy(planted(0).suspect).requires_grad_(True), pictures(96, 0)
    method = TSBD(unlearning_epochs=3, unlearning_rate=0.03, batch_size=96, augmentation="none")
    recipe = fine_tuning(3, 96, 0.03, "none", "constant", 0.0)
    ours, _ = unlearned(model, clean, recipe, runtime(), enough=-1.0)
    naive = tsbd.unlearned(method, plain_layout(model), common.Samples(clean, "none", CPU, 0))
    assert common.accuracy(naive, [(clean.images.float() / 255, clean.labels)]) > 0.2, "it did not end early"
    assert moved(ours, model) > 1e-3
    nearly(ours, naive)


def test_unlearning_of_rnp_equals() -> None:
    model, clean = used(), pictures(96, 0)
    method = RNP(unlearning_epochs=4, unlearned=0.0, unlearning_rate=0.05, batch_size=96, augmentation="none")
    recipe = fine_tuning(4, 96, 0.05, "none", "constant")
    ours, _ = unlearned(model, clean, recipe, runtime(), enough=0.0, longest=20.0, late=0.1)
    naive = plain_rnp.unlearned(method, plain_layout(model), common.Samples(clean, "none", CPU, 0))
    assert moved(ours, model) > 1e-3
    nearly(ours, naive)


@pytest.mark.parametrize("steps", [1, 2])
def test_perturbations_losses_and_gradients_of_anp_equal(steps: int) -> None:
    model, batch = used(), batch_of(pictures(64, 0))
    method = ANP(steps=steps)
    plain, layers = masks.masked_copy(model)
    plain.train()
    masked = MaskedNetwork(model, norm_layers(model, "Test"))
    hook = _Adversarial(method, masked)
    hook.begin(masked, mask_recipe(1, 64, 0.1, "none"), runtime())
    hook.batch(masked, batch, torch.Generator().manual_seed(0))
    start = torch.rand(60, generator=torch.Generator().manual_seed(1))
    masked.train()
    with torch.no_grad():
        masked.mask.copy_(start)
        for layer, *parts in zip(layers, *(one.split([12, 24, 24]) for one in (start, *hook.start))):
            for parameter, value in zip((layer.mask, layer.weight_noise, layer.bias_noise), parts):
                parameter.copy_(value)
    loss = hook.loss(masked, batch)
    loss.backward()
    # The plain copy has statistics of its own.
    anp.perturb(method, plain, layers, batch.images, batch.targets)
    plain.zero_grad()
    wanted = anp.mask_loss(method, plain, layers, batch.images, batch.targets)
    wanted.backward()
    found = hook.search(batch)
    noise = torch.stack(
        [torch.cat([one.weight_noise for one in layers]), torch.cat([one.bias_noise for one in layers])]
    )
    torch.testing.assert_close(found, noise)
    assert float((found - hook.start).abs().max()) > 0.1
    torch.testing.assert_close(loss, wanted)
    assert masked.mask.grad is not None
    gradient = torch.cat([one.mask.grad for one in layers if one.mask.grad is not None])
    torch.testing.assert_close(masked.mask.grad, gradient, rtol=1e-3, atol=1e-6)


def test_masks_of_rnp_equal() -> None:
    model, clean = used(), pictures(120, 0)
    method = RNP(unlearning_epochs=2, unlearned=0.0, unlearning_rate=0.02, epochs=3, batch_size=96, augmentation="none")
    ours, naive = both(method, model, clean)
    nearly(ours, naive, rtol=0, atol=0)


def test_pruning_by_masks_equals() -> None:
    made = planted(1)
    held = pictures(80, 3)
    layers = list(norm_layers(made.suspect, "Test").values())
    mask = torch.rand(60, generator=torch.Generator().manual_seed(3))
    ours, naive = copy.deepcopy(made.suspect), copy.deepcopy(made.suspect)
    parts = masks.masked_copy(naive)[1]
    with torch.no_grad():
        for layer, part in zip(parts, mask.split([layer.num_features for layer in layers])):
            layer.mask.copy_(part)
    sweep, _ = prune_by_mask(
        "Test", ours, list(norm_layers(ours, "Test").values()), mask, "threshold", (), held, 0.1, runtime()
    )
    masks.prune(naive, parts, common.Samples(held, "none", CPU, 0), 32, anp.THRESHOLDS, 0.1)
    assert 0 < sweep.chosen < 0.9
    nearly(ours, naive, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["WRN16x1", "ResNet18", "PreActResNet18"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_losses_and_gradients_of_npd_equal(architecture: str, steps: int) -> None:
    model, clean = staged(architecture), pictures(48, 0)
    place = {"WRN16x1": "block3.layer.1.conv1", "ResNet18": "layer4.1.conv1", "PreActResNet18": "layer4.1.conv1"}
    method = NPD(steps=steps, bound=1.5)
    batch = batch_of(clean)
    plain = copy.deepcopy(model)
    own = npd.insert(plain, CPU, place[architecture])
    plug = insert_plug(model, Edit(kind="convbn", before=place[architecture]))
    model.requires_grad_(False)
    plug.requires_grad_(True)
    with torch.no_grad():
        for ours, theirs in zip(plug.parameters(), own.parameters()):
            ours.add_(torch.randn(ours.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
            theirs.copy_(ours)
    frozen = Frozen.of(model, place[architecture], clean, runtime())
    for hook in (_Polarizing(method, frozen), _WarmUp(method, frozen)):
        hook.begin(model, RECIPE, runtime())
        for one in (plug, own):
            one.zero_grad()
        loss = hook.loss(model, batch)
        loss.backward()
        if isinstance(hook, _WarmUp):
            own.train()
            wanted = nn.functional.cross_entropy(plain(batch.images), batch.targets)
        else:
            wanted = npd.polarizer_loss(method, plain, batch.images, batch.targets)
        wanted.backward()
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(plug.parameters(), own.parameters()):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=5e-3, atol=1e-5)


def test_examples_and_losses_of_sau_equal() -> None:
    made, clean = planted(0), pictures(96, 6)
    method = SAU()
    model, suspect = copy.deepcopy(made.suspect), plain_layout(made.suspect)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.02)
    naive, batch = plain_layout(model), batch_of(clean)
    hook = our_sau._Unlearning(method, made.suspect, clean)
    hook.begin(model, RECIPE, runtime())
    answers = model(batch.images).argmax(1)
    found = hook.search(model, batch, answers, hook.answers)
    wanted = sau.search(method, naive, suspect, batch.images, batch.targets)
    assert float((found != wanted).float().mean()) < 1e-3
    assert float((found - batch.images).abs().max()) == pytest.approx(0.2)
    loss = hook.loss(model, batch)
    outer = sau.outer_loss(method, naive, suspect, batch.images, found.detach(), batch.targets)
    torch.testing.assert_close(loss, outer, rtol=1e-4, atol=1e-5)


def test_perturbation_and_hypergradient_of_i_bau_equal() -> None:
    made, clean = planted(0), pictures(96, 6)
    model = copy.deepcopy(made.suspect).requires_grad_(True).eval()
    method = IBAU(perturbed=0.25, steps=4)
    naive, samples = plain_layout(model).requires_grad_(True), common.Samples(clean, "none", CPU, 0)
    hook = our_i_bau._Unlearning(method, clean)
    hook.begin(model, fine_tuning(1, 32, 0.01, "none"), runtime())
    hook.perturbation = hook.perturb()
    batches = [samples.batch(rows.tolist()) for rows in hook.parts]
    delta = i_bau.perturbation(method, naive, batches)
    assert float(delta.abs().max()) > 1e-3
    torch.testing.assert_close(hook.perturbation, delta, rtol=1e-3, atol=1e-5)
    hook.step = 1
    batch = Batch(images=batches[1][0], targets=batches[1][1], rows=hook.parts[1])
    hook.perturbation = delta
    hook.update(model, batch, torch.optim.SGD(model.parameters(), 0.0))
    wanted = i_bau.hypergradient(method, naive, delta, batches[1], batches[0])
    for parameter, gradient in zip(model.parameters(), wanted):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=2e-3, atol=2e-5)


def test_losses_and_gradients_of_nad_equal() -> None:
    description = Description(
        architecture="PreActResNet18",
        arguments={"width": 4},
        class_names=NAMES,
        image_shape=(3, 32, 32),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
    )
    model, teacher = (build_network(description, seed=seed) for seed in (0, 1))
    small = pictures(32, 0)
    batch = batch_of(
        replace(small, images=small.images.repeat_interleave(3, 2)[:, :, :32].repeat_interleave(3, 3)[..., :32])
    )
    plain, method = plain_layout(model).train(), NAD()
    hook = _Distillation(method, teacher, feature_map_names(model, batch.images))
    hook.begin(model, RECIPE, runtime())
    loss = hook.loss(model.train(), batch)
    loss.backward()
    wanted = nad.distillation_loss(method, plain, teacher, batch.images, batch.targets, nad.CUTS)
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    assert loss.item() > 5, "the attention counts"
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-3 * float(ours.grad.abs().max()))


def test_the_curve_of_mcr_has_the_same_gradients() -> None:
    start, end, batch = used(0), used(1), batch_of(pictures(64, 0))
    curve = _Curve(copy.deepcopy(start), end).train()
    curve.position.fill_(0.3)
    loss = nn.functional.cross_entropy(curve(batch.images), batch.targets)
    loss.backward()
    ends = [{name: one.detach() for name, one in model.named_parameters()} for model in (start, end)]
    bend = {name: ((ends[0][name] + ends[1][name]) / 2).requires_grad_(True) for name in ends[0]}
    plain = plain_layout(start).train()
    logits = torch.func.functional_call(plain, mcr.at(ends[0], bend, ends[1], 0.3), (batch.images,))
    wanted = nn.functional.cross_entropy(logits, batch.targets)
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    for ours, theirs in zip(curve.bend, bend.values()):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6)


def test_scores_of_channels_equal() -> None:
    model, clean = used(), pictures(60, 0)
    plain = plain_layout(model)
    convolutions = [one for one in plain.modules() if isinstance(one, nn.Conv2d)]
    layers = list(norm_layers(model, "Test").values())
    found = clean_statistics(model, layers, clean.images, runtime())
    theirs = bnp.statistics(plain, common.Samples(clean, "none", CPU, 0))
    for layer, convolution, (norm, statistics) in zip(layers, convolutions, theirs.items()):
        ours = channel_lipschitz(layer, [convolution])
        torch.testing.assert_close(ours.float(), clp.channel_lipschitz(convolution, norm), rtol=1e-4, atol=1e-6)
        ours = divergence(layer, *found[layer])
        torch.testing.assert_close(ours.float(), bnp.divergence(norm, *statistics), rtol=1e-3, atol=1e-5)


class Rows:
    """Draws the rows that our scan draws."""

    def __init__(self, count: int, size: int) -> None:
        self.draws, self.count, self.size = runtime().generator("neural cleanse"), count, size
        self.left: list[int] = []

    def randrange(self, count: int) -> int:
        assert count == self.count
        if not self.left:
            self.left = torch.randint(self.count, (self.size,), generator=self.draws).tolist()
        return self.left.pop(0)


def test_triggers_of_neural_cleanse_equal() -> None:
    made, clean = planted(0), pictures(64, 6)
    options = NeuralCleanse(rounds=12, steps=5, batch_size=16, patience=2)
    model = copy.deepcopy(made.suspect).eval().requires_grad_(False)
    draws = runtime().generator("neural cleanse start")
    start = [torch.rand((1, *SHAPE[1:]), generator=draws), torch.rand(SHAPE, generator=draws)]
    finding_masks, _, success, _ = options._invert(model, clean, torch.arange(clean.classes), runtime())
    samples = common.Samples(clean, "none", CPU, 0)
    sizes = []
    for label in range(clean.classes):
        samples.draws = Rows(len(clean), options.batch_size)  # type: ignore[assignment]
        (mask, _), size = nc_unlearning.invert(options, model, samples, label, start)
        sizes.append(size)
        assert (size is not None) == bool(success[label] >= options.success)
        torch.testing.assert_close(finding_masks[label], mask, rtol=0.02, atol=0.02)
    assert sizes[made.target] is not None


def test_the_step_of_neural_cleanse_has_the_same_gradients() -> None:
    made, clean = planted(0), pictures(64, 6)
    model = copy.deepcopy(made.suspect).eval().requires_grad_(False)
    search = _Search(NeuralCleanse(), model, clean, torch.arange(clean.classes), runtime())
    raw = [one.detach().clone() for one in (search.mask_raw, search.pattern_raw)]
    rows = torch.arange(16)
    search.step(torch.arange(clean.classes), rows)
    images, _ = common.Samples(clean, "none", CPU, 0).batch(rows.tolist())
    for label in range(clean.classes):
        own = [one[label].clone().requires_grad_(True) for one in raw]
        loss, _ = nc_unlearning.inversion_loss(plain_layout(model), own, images, label, 1e-3)
        loss.backward()
        for one, whole in zip(own, (search.mask_raw, search.pattern_raw)):
            assert whole.grad is not None
            torch.testing.assert_close(whole.grad[label], one.grad, rtol=1e-3, atol=1e-6)


def test_classes_are_suspected_by_the_same_index() -> None:
    generator = torch.Generator().manual_seed(0)
    options = NeuralCleanse()
    counts = []
    for _ in range(50):
        sizes = torch.exp(torch.randn(10, generator=generator) * 0.3 + 2)
        sizes[3] *= float(torch.rand((), generator=generator))
        found: list[Any] = [((torch.ones(1, 12, 12), torch.ones(3, 12, 12)), float(size)) for size in sizes]
        index = low_outliers(sizes.log())
        wanted = [int(label) for label in index.argsort(descending=True) if index[label] > options.threshold]
        assert nc_unlearning.suspected(options, found) == wanted
        counts.append(len(wanted))
    assert 0 < sum(counts) < 50


def test_a_step_of_ft_sam_climbs_by_rho_in_its_own_measure() -> None:
    """The plain step itself against the paper: || e / |w| || is rho."""
    model, batch = used().train(), batch_of(pictures(64, 0))
    seen: list[list[Tensor]] = []
    handle = model.register_forward_pre_hook(lambda *_: seen.append([p.detach().clone() for p in model.parameters()]))
    ft_sam.step(model, batch.images, batch.targets, torch.optim.SGD(model.parameters(), 0.0), 0.7, 0.0)
    handle.remove()
    before, climbed = seen
    parts = [((there - here) / here.abs().clamp_min(1e-12)).pow(2)[here != 0] for here, there in zip(before, climbed)]
    assert math.sqrt(sum(float(part.sum()) for part in parts)) == pytest.approx(0.7, rel=1e-3)
