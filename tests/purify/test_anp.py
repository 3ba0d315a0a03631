"""ANP's search and losses against plain copies of the network, and on planted backdoors."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.test_masked import images, layers_of, masked_copy, random
from tests.training.test_resume import Stops
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import ANP
from unbackdoor.purify import anp as module
from unbackdoor.purify.anp import _Adversarial
from unbackdoor.purify.masked import MaskedNetwork, mask_recipe, prune_by_mask
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Runtime

SHORT = ANP(iterations=100, batch_size=64, augmentation="none")


def prepared(**options: Any) -> tuple[_Adversarial, MaskedNetwork, nn.Module, Batch]:
    """Return a hook that has begun, its network with random masks, a plain copy and a batch."""
    masked, plain = masked_copy()
    with torch.no_grad():
        masked.mask.copy_(random(60, 5))
    hook = _Adversarial(ANP(**options), masked)
    hook.begin(masked, mask_recipe(1, 16, 0.1, "none"), runtime())
    batch = Batch(images=images(), targets=pictures(16, 3).labels, rows=torch.arange(16))
    assert hook.batch(masked, batch, torch.Generator().manual_seed(0)) is batch
    return hook, masked, plain, batch


def perturbed(plain: nn.Module, weights: Tensor, biases: Tensor) -> nn.Module:
    """Return a copy whose weights and biases of batch normalisation are multiplied."""
    model = copy.deepcopy(plain)
    with torch.no_grad():
        for layer, weight, bias in zip(
            layers_of(model), weights.split_with_sizes([12, 24, 24]), biases.split_with_sizes([12, 24, 24])
        ):
            layer.weight.mul_(weight)
            layer.bias.mul_(bias)
    return model


def test_the_search_begins_uniformly_within_epsilon() -> None:
    hook, masked, _, batch = prepared(epsilon=0.4)
    starts = []
    for seed in range(20):
        hook.batch(masked, batch, torch.Generator().manual_seed(seed))
        starts.append(hook.start)
    values = torch.stack(starts).flatten().sort().values
    even = (torch.arange(len(values)) + 0.5) / len(values) * 0.8 - 0.4
    assert float((values - even).abs().max()) < 0.05


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_signed_steps_equal_those_of_a_plain_copy_and_are_not_cut_back(steps: int) -> None:
    hook, masked, plain, batch = prepared(steps=steps)
    mask, change = masked.mask.detach(), hook.start.clone()
    for _ in range(steps):
        model = perturbed(plain, mask + change[0], 1 + change[1])
        F.cross_entropy(model(batch.images), batch.targets).backward()  # type: ignore[no-untyped-call]
        gradients = [
            torch.cat([layer.weight.grad * old.weight for layer, old in zip(layers_of(model), layers_of(plain))]),  # type: ignore[operator]
            torch.cat([layer.bias.grad * old.bias for layer, old in zip(layers_of(model), layers_of(plain))]),  # type: ignore[operator]
        ]
        change = change + 0.4 / steps * torch.stack(gradients).detach().sign()
    found = hook.search(batch)
    torch.testing.assert_close(found, change)
    assert not found.requires_grad
    assert masked.mask.grad is None
    if steps:
        assert 0.4 < float(found.abs().max()) <= 0.8


def test_bounded_perturbations_stay_within_epsilon_and_the_search_raises_the_loss() -> None:
    hook, masked, _, batch = prepared(bounded=True, steps=4)
    found = hook.search(batch)
    assert float(found.abs().max()) == pytest.approx(0.4)

    @torch.no_grad()
    def loss(change: Tensor) -> float:
        logits = masked.scaled(batch.images, masked.mask + change[0], 1 + change[1])
        return float(F.cross_entropy(logits, batch.targets))

    assert loss(found) > loss(hook.start) + 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_the_loss_weighs_the_clean_and_the_perturbed_network(alpha: float) -> None:
    hook, masked, plain, batch = prepared(alpha=alpha)
    change = hook.search(batch)
    mask = masked.mask.detach()
    clean, worst = (
        F.cross_entropy(perturbed(plain, weights, biases)(batch.images), batch.targets).item()
        for weights, biases in ((mask, torch.ones(60)), (mask + change[0], 1 + change[1]))
    )
    assert worst > clean + 0.1
    loss = hook.loss(masked, batch)
    assert loss.item() == pytest.approx(alpha * clean + (1 - alpha) * worst, abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert masked.mask.grad is not None
    assert float(masked.mask.grad.abs().sum()) > 0


def test_without_epsilon_only_the_clean_loss_is_left() -> None:
    hook, masked, plain, batch = prepared(epsilon=0.0)
    model = perturbed(plain, masked.mask.detach(), torch.ones(60))
    expected = 0.2 * F.cross_entropy(model(batch.images), batch.targets).item()
    assert hook.loss(masked, batch).item() == pytest.approx(expected, abs=1e-6)


def test_only_weights_of_batch_normalisation_change_and_only_to_zero() -> None:
    """Running statistics, which move while the masks learn, are the suspect's: pruning starts from the suspect."""
    models = planted(1)
    repaired, history = SHORT.purify(models.suspect, models.data, runtime())
    norms = {f"{name}.weight" for name, module in models.suspect.named_modules() if isinstance(module, nn.BatchNorm2d)}
    before, after = state_of(models.suspect), state_of(repaired)
    off = 0
    for name, value in after.items():
        if name in norms:
            assert bool(((value == before[name]) | (value == 0)).all())
            off += int((value == 0).sum())
        else:
            assert torch.equal(value, before[name])
    assert off > 0
    assert history.notes == (f"ANP switched off {off} of 60 channels of batch normalization.",)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in repaired.parameters())


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_planted_backdoor_is_pruned_and_a_clean_twin_keeps_its_accuracy(seed: int) -> None:
    models = planted(seed)
    repaired, history = SHORT.purify(models.suspect, models.data, runtime(seed))
    twin, _ = SHORT.purify(models.twin, models.data, runtime(seed))
    before, after, unharmed = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, twin)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert unharmed.acc.value > 0.95
    (sweep,) = history.sweeps
    assert sweep.values == tuple(round(0.05 * number, 2) for number in range(19))
    assert "held-out clean samples" in sweep.rule


def test_channels_can_be_pruned_by_number() -> None:
    models = planted(1)
    method = ANP(iterations=40, batch_size=64, augmentation="none", by="number", values=(10, 20, 30, 40, 50))
    _, history = method.purify(models.suspect, models.data, runtime())
    (sweep,) = history.sweeps
    assert sweep.values == (0.0, 10.0, 20.0, 30.0, 40.0, 50.0)
    assert history.notes[0].startswith(f"ANP switched off {int(sweep.chosen)} of 60 ")


@pytest.mark.parametrize(("iterations", "epochs"), [(1, 1), (2, 1), (4, 2), (10, 5)])
def test_iterations_are_rounded_to_passes(iterations: int, epochs: int) -> None:
    """Of 30 clean samples 24 are repaired with, in two batches."""
    method = ANP(iterations=iterations, batch_size=12)
    _, history = method.purify(network(0), DefenderData(clean=pictures(30, 3)), runtime())
    assert history.epochs == len(history.loss) == epochs


def test_an_interrupted_repair_goes_on_where_it_was(tmp_path: Path) -> None:
    suspect, path = planted(1).suspect, tmp_path / "resume.pt"
    data, method = DefenderData(clean=pictures(30, 3)), ANP(iterations=8, batch_size=12)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=Stops(5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    progress = Stops()
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again, history = method.purify(suspect, data, going, resume=path)
    assert progress.totals == [4]
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_masks_are_learned_in_float32_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    masks: list[Tensor] = []

    def noted(method: str, model: Network, layers: Any, mask: Tensor, *rest: Any) -> Any:
        masks.append(mask.detach().clone())
        return prune_by_mask(method, model, layers, mask, *rest)

    monkeypatch.setattr(module, "prune_by_mask", noted)
    method, data = ANP(iterations=6, batch_size=12), DefenderData(clean=pictures(30, 3))
    for one in (runtime(), Runtime(device="cpu", precision="bf16", threads=1)):
        method.purify(planted(1).suspect, data, one)
    assert torch.equal(*masks)
    assert float(masks[0].min()) < 1, "or nothing was learned"


def test_a_budget_shortens_it() -> None:
    short = Runtime(device="cpu", precision="fp32", threads=1, budget=1e-6)
    _, history = ANP(batch_size=12).purify(network(0), DefenderData(clean=pictures(30, 3)), short)
    assert history.epochs == 1


def test_a_network_without_batch_normalisation_is_refused() -> None:
    flat = network(0)
    flat.body = nn.Sequential(nn.Flatten(), nn.Linear(432, 8))
    with pytest.raises(InputError, match="ANP prunes channels of batch normalization, and this network has none"):
        ANP().purify(flat, DefenderData(clean=pictures(24, 3)), runtime())


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"ANP needs clean samples.*--clean"):
        ANP().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations must be 1 or more"),
        ({"steps": -1}, "steps 0 or more"),
        ({"epsilon": -0.1}, "epsilon must be"),
        ({"epsilon": float("inf")}, "epsilon must be"),
        ({"alpha": 1.1}, "alpha lie between"),
        ({"by": "share"}, "by threshold or number"),
        ({"values": (0.2, 0.1)}, "ascending"),
        ({"allowance": 2.0}, "the allowance"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"^ANP: .*{words}"):
        ANP(**options)
