"""RNP unlearns clean samples in a copy, recovers them by masks, and prunes the suspect by these."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import RNP
from unbackdoor.purify import rnp as module
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.masked import MaskHook
from unbackdoor.purify.rnp import LATE
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, History, Runtime, fit
from unbackdoor.training.unlearning import Unlearning

SMALL = RNP(batch_size=64, epochs=5, learning_rate=0.05, by="number", augmentation="none")
"""Of 60 channels, those of the planted networks, thresholds on masks take too many at once."""


def unlearn(model: Network, longest: float = 20.0, **options: Any) -> tuple[Unlearning, History]:
    """Unlearn 48 pictures in place, all in one batch."""
    method = RNP(batch_size=48, augmentation="none", **options)
    hook = Unlearning(method.unlearned, longest, LATE, runtime())
    recipe = fine_tuning(method.unlearning_epochs, 48, method.unlearning_rate, "none", "constant")
    return hook, fit(model, pictures(48, 3), recipe, runtime(), hook=hook)


@pytest.mark.parametrize("longest", [20.0, 0.05])
def test_unlearning_equals_a_plain_loop_uphill_whose_rate_falls_after_half(
    longest: float,
) -> None:
    model, clean = copy.deepcopy(planted(1).suspect), pictures(48, 3)
    plain = copy.deepcopy(model).train()
    moving = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    for step in range(4):
        plain.zero_grad()
        F.cross_entropy(plain(clean.images.float() / 255), clean.labels).backward()  # type: ignore[no-untyped-call]
        norm = float(torch.stack([p.grad.norm() for p in plain.parameters() if p.grad is not None]).norm())
        for parameter, moved in zip(plain.parameters(), moving):
            assert parameter.grad is not None
            uphill = -parameter.grad * min(1.0, longest / norm)
            moved.mul_(0.9).add_(uphill + 5e-4 * parameter.detach())
            parameter.data -= (0.05 if step < 2 else 0.005) * moved
    unlearn(model, longest, unlearning_epochs=4, unlearning_rate=0.05, unlearned=0.0)
    for name, value in state_of(plain).items():
        torch.testing.assert_close(state_of(model)[name], value, rtol=1e-3, atol=1e-4)


def test_gradients_are_cut_before_the_step() -> None:
    """The authors' program cuts them before they are computed."""
    model = network(0)
    with torch.no_grad():
        model.body[-1].weight.mul_(1000)  # type: ignore[index]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    clean = pictures(16, 3)
    batch = Batch(images=clean.images.float() / 255, targets=clean.labels, rows=torch.arange(16))
    hook = Unlearning(0.2, 20.0, LATE, runtime())
    hook.begin(model.train(), fine_tuning(1, 16, 1.0, "none"), runtime())
    hook.update(model, batch, torch.optim.SGD(model.parameters(), 1.0))
    gone = torch.stack([(a - b).norm() for a, b in zip(model.parameters(), before)]).norm()
    assert gone.item() == pytest.approx(20.0, rel=1e-3)


def test_unlearning_ends_with_the_first_epoch_whose_accuracy_is_low_enough() -> None:
    model = copy.deepcopy(planted(1).suspect)
    hook, history = unlearn(model, unlearning_epochs=40, unlearning_rate=0.1)
    assert history.epochs == len(history.loss) < 40
    assert hook.accuracy <= 0.2
    assert history.loss[-1] > history.loss[0]
    shorter, _ = unlearn(copy.deepcopy(planted(1).suspect), unlearning_epochs=40, unlearning_rate=0.1, unlearned=0.9)
    assert 0.2 < shorter.accuracy <= 0.9


def test_an_unlearning_that_ends_too_early_is_told() -> None:
    models = planted(1)
    method = RNP(unlearning_epochs=1, unlearning_rate=1e-6, epochs=1, batch_size=64)
    _, history = method.purify(models.suspect, models.data, runtime())
    assert history.notes[0].startswith("RNP's unlearning ended at an accuracy of")
    assert "above the 20.0 % wanted" in history.notes[0]


def test_only_weights_of_batch_normalisation_change_and_only_to_zero() -> None:
    models = planted(1)
    repaired, history = SMALL.purify(models.suspect, models.data, runtime())
    norms = {f"{name}.weight" for name, one in models.suspect.named_modules() if isinstance(one, nn.BatchNorm2d)}
    before, after = state_of(models.suspect), state_of(repaired)
    off = 0
    for name, value in after.items():
        if name in norms:
            assert bool(((value == before[name]) | (value == 0)).all())
            off += int((value == 0).sum())
        else:
            assert torch.equal(value, before[name])
    assert off > 0
    assert history.notes == (f"RNP switched off {off} of 60 channels of batch normalization.",)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in repaired.parameters())


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_planted_backdoor_is_pruned_and_a_clean_twin_keeps_its_accuracy(seed: int) -> None:
    models = planted(seed)
    repaired, history = SMALL.purify(models.suspect, models.data, runtime(seed))
    twin, _ = SMALL.purify(models.twin, models.data, runtime(seed))
    before, after, unharmed = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired, twin)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.94
    assert unharmed.acc.value > 0.94
    (sweep,) = history.sweeps
    assert len(sweep.values) == 61
    assert "held-out clean samples" in sweep.rule


@pytest.mark.parametrize("where", ["RNP's unlearning", "RNP"])
def test_an_interrupted_repair_goes_on_in_the_stage_where_it_was(where: str, tmp_path: Path) -> None:
    suspect, path = planted(1).suspect, tmp_path / "resume.pt"
    data = DefenderData(clean=pictures(30, 3))
    method = RNP(unlearning_epochs=4, epochs=4, batch_size=12, unlearned=0.0)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 5))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    assert path.exists() == (where == "RNP")
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again, history = method.purify(suspect, data, going, resume=path)
    assert progress.totals == ([4, 8] if where == "RNP's unlearning" else [0, 4]), "finished epochs are not done again"
    whole, expected = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))
    assert history == expected


def test_the_accuracy_when_unlearned_is_known_after_a_resumption_too(tmp_path: Path) -> None:
    """The note depends on it, and a finished stage is not done again."""
    suspect, data = planted(1).suspect, DefenderData(clean=pictures(30, 3))
    method = RNP(unlearning_epochs=1, unlearning_rate=1e-6, epochs=1, batch_size=12)
    _, first = method.purify(suspect, data, runtime(), resume=tmp_path / "resume.pt")
    _, second = method.purify(suspect, data, runtime(), resume=tmp_path / "resume.pt")
    assert first.notes == second.notes
    assert len(first.notes) == 2


def test_masks_are_learned_in_float32_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[torch.dtype] = []
    loss = MaskHook.loss

    def noted(self: MaskHook, model: nn.Module, batch: Batch) -> torch.Tensor:
        kinds.append(self.masked(batch.images).dtype)
        return loss(self, model, batch)

    monkeypatch.setattr(MaskHook, "loss", noted)
    mixed = Runtime(device="cpu", precision="bf16", threads=1)
    method = RNP(unlearning_epochs=1, epochs=1, batch_size=12)
    method.purify(planted(1).suspect, DefenderData(clean=pictures(30, 3)), mixed)
    assert kinds == [torch.float32] * 2


def test_unlearning_is_in_float32_whatever_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks recover what unlearning did to the weights."""
    found: list[dict[str, torch.Tensor]] = []
    original = module.unlearned

    def noted(*given: Any, **options: Any) -> tuple[Network, History]:
        forgetful, history = original(*given, **options)
        found.append({name: value.clone() for name, value in state_of(forgetful).items()})
        return forgetful, history

    monkeypatch.setattr(module, "unlearned", noted)
    suspect, method = planted(1).suspect, RNP(unlearning_epochs=2, epochs=1, batch_size=12)
    for one in (runtime(), Runtime(device="cpu", precision="bf16", threads=1)):
        method.purify(suspect, DefenderData(clean=pictures(30, 3)), one)
    exact, mixed = found
    assert same_state(exact, mixed)
    assert not same_state(exact, state_of(suspect))


def test_a_budget_shortens_both_stages() -> None:
    progress = StopsIn("nothing", 0)
    short = Runtime(device="cpu", precision="fp32", threads=1, budget=1e-6, progress=progress)
    RNP(batch_size=12).purify(network(0), DefenderData(clean=pictures(30, 3)), short)
    assert progress.totals == [2, 2]


def test_a_network_without_batch_normalisation_is_refused() -> None:
    flat = network(0)
    flat.body = nn.Sequential(nn.Flatten(), nn.Linear(432, 8))
    with pytest.raises(InputError, match="RNP prunes channels of batch normalization, and this network has none"):
        RNP().purify(flat, DefenderData(clean=pictures(24, 3)), runtime())


def test_without_clean_samples_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match=r"RNP needs clean samples.*--clean"):
        RNP().purify(network(0), DefenderData(), runtime())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unlearning_epochs": 0}, "epochs of unlearning must be 1 or more"),
        ({"unlearned": -0.1}, "accuracy when unlearned"),
        ({"unlearned": 1.1}, "accuracy when unlearned"),
        ({"alpha": 0.0}, "alpha be above 0"),
        ({"by": "share"}, "by threshold or number"),
        ({"values": (-1.0,)}, "ascending"),
        ({"allowance": float("nan")}, "the allowance"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=rf"^RNP: .*{words}"):
        RNP(**options)
