"""D-BR unlearns rows held poisoned before each epoch on rows held clean, and removes a planted backdoor so."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parted import GivenDBR, partly_known
from tests.planted import network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.purify import d_br as module
from unbackdoor.purify.d_br import DBR, UnlearnFirst
from unbackdoor.sift import Suspicion
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit

PLAIN = Recipe(
    epochs=2, batch_size=40, learning_rate=0.01, schedule="constant", label_smoothing=0.0, ema=0.0, momentum=0.0,
    augmentation="none", low_resolution=0.0, weight_decay=0.0, train_mode=False,
)  # fmt: skip


def test_a_round_is_an_epoch_uphill_and_then_one_downhill_as_computed_plainly() -> None:
    """One batch each, so that the order of images is nothing but their sum."""
    clean, poisoned, model = pictures(40, 1), pictures(16, 2), network(0)
    fit(model, clean, PLAIN, runtime(), hook=UnlearnFirst(poisoned))
    plain = network(0).eval()
    optimizer = torch.optim.SGD(plain.parameters(), 0.01)
    for _ in range(2):
        for images, sign in ((poisoned, -1), (clean, 1)):
            optimizer.zero_grad()
            losses = F.cross_entropy(plain(images.images.float() / 255), images.labels, reduction="none")
            # What is no likelier than by chance, with eight classes, is climbed no further.
            wanted = [loss for loss in losses if sign > 0 or loss < math.log(8)]
            (sign * torch.stack(wanted).sum() / len(losses)).backward()
            optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_steps_uphill_and_downhill_have_the_authors_momentum_and_weight_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    steps, climb, descend = [], UnlearnFirst.unlearn, Hook.update

    def seen(way: str, optimizer: torch.optim.Optimizer) -> None:
        (group,) = optimizer.param_groups
        steps.append((way, group["lr"], group["momentum"], group["weight_decay"], group["nesterov"]))

    def unlearn(self: UnlearnFirst, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        seen("up", optimizer)
        climb(self, model, optimizer)

    def update(self: Hook, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        seen("down", optimizer)
        return descend(self, model, batch, optimizer)

    monkeypatch.setattr(UnlearnFirst, "unlearn", unlearn)
    monkeypatch.setattr(Hook, "update", update)
    GivenDBR(rounds=2).purify(network(0), DefenderData(untrusted=pictures(96, 0)), runtime())
    assert steps == [("up", 1e-4, 0.9, 5e-4, False), ("down", 1e-4, 0.9, 5e-4, False)] * 2


def test_every_poisoned_row_is_unlearned_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clean, poisoned, seen = pictures(80, 1), pictures(50, 2), []

    class Sees(nn.Module):
        def __init__(self, inner: Network) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                seen.append(len(images))
            return self.inner(images)

    fit(Sees(network(0)), clean, PLAIN, runtime(), hook=UnlearnFirst(poisoned))
    assert seen == [25, 25, 40, 40] * 2


@pytest.mark.parametrize(
    ("shares", "rounds"),
    [((0.9, 0.2, 0.195), 3), ((0.995, 0.99, 0.98, 0.6), 4), ((0.0,), 2), ((0.3, 0.285, 0.27, 0.26), 4)],
)
def test_it_ends_when_most_are_forgotten_and_a_round_forgets_next_to_no_more(
    shares: tuple[float, ...], rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean, poisoned, model = pictures(40, 1), pictures(1000, 2), network(0)
    left = iter((*shares, *[shares[-1]] * 4))

    def answers(*_: object) -> torch.Tensor:
        right = torch.arange(1000) < next(left) * 1000
        return F.one_hot(torch.where(right, poisoned.labels, (poisoned.labels + 1) % 8), 8).float()

    monkeypatch.setattr(module, "logits_of", answers)
    hook = UnlearnFirst(poisoned)
    found = fit(model, clean, replace(PLAIN, epochs=4), runtime(), hook=hook)
    assert found.epochs == hook.rounds == rounds


def test_a_budget_counts_the_images_that_are_unlearned(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets = []

    def fitted(model: nn.Module, data: object, recipe: object, runtime: Runtime, **_: object) -> History:
        budgets.append(runtime.budget)
        return History(epochs=1)

    monkeypatch.setattr(module, "fit", fitted)
    data = DefenderData(untrusted=pictures(96, 0))
    hurried = replace(runtime(), budget=1.0)
    # Three of four rows are held clean and one of twelve poisoned: 72 and 8.
    GivenDBR().purify(network(0), data, hurried)
    assert budgets == [pytest.approx(0.6 * 0.9)]
    hook = UnlearnFirst(pictures(16, 2))
    assert hook.due
    assert not hook.for_timing().due


def test_what_cannot_work_is_refused_before_the_sifting() -> None:
    with pytest.raises(InputError, match="DBR needs images that are not mixed with others, and cutmix mixes them"):
        DBR(augmentation="cutmix")
    with pytest.raises(InputError, match="epochs"):
        DBR(rounds=0)


def _known(kinds: torch.Tensor, count: int) -> Suspicion:
    return partly_known(kinds, good=4, bad=2)


@pytest.mark.parametrize("seed", [1, 4])
def test_a_planted_backdoor_is_removed_with_some_of_the_rows_known(seed: int) -> None:
    models = planted(seed)
    half = partial(_known, models.fitted.kinds)
    method = GivenDBR(rounds=20, batch_size=32, learning_rate=1e-3, augmentation="none", given=half)
    repaired, history = method.purify(models.suspect, DefenderData(untrusted=models.fitted.train), runtime(seed))
    before, after = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, repaired)
    )
    assert before.asr is not None
    assert after.asr is not None
    assert before.asr.value > 0.95
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert "DBR held 180 of 800 images clean and 40 poisoned, and unlearned these in" in history.notes[0]
    assert history.epochs < 20


@pytest.mark.slow
def test_a_planted_backdoor_is_removed_by_the_rows_that_fct_finds_and_a_clean_model_is_kept() -> None:
    models = planted(4)
    method = DBR(rounds=20, batch_size=32, learning_rate=4e-3, augmentation="none", clean_share=0.5)
    repaired, history = method.purify(models.suspect, DefenderData(untrusted=models.fitted.train), runtime(4))
    after = evaluate(repaired, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
    assert after.asr is not None
    assert after.asr.value < 0.1
    assert after.acc.value > 0.95
    assert "DBR held 400 of 800 images clean and 40 poisoned" in history.notes[0]
    # Of the twin's clean images a twentieth is held poisoned all the same, and unlearned.
    kept, _ = method.purify(models.twin, DefenderData(untrusted=pictures(800, 40)), runtime(4))
    assert evaluate(kept, models.test, runtime()).acc.value > 0.95


def test_an_interrupted_repair_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, suspect = tmp_path / "resume.pt", network(0)
    data = DefenderData(untrusted=pictures(96, 0))
    monkeypatch.setattr(module, "FORGOTTEN", -1.0)
    method = GivenDBR(rounds=4, batch_size=24, learning_rate=1e-2)
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn("DBR", 7))
    with pytest.raises(KeyboardInterrupt):
        method.purify(suspect, data, stopping, resume=path)
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again, _ = method.purify(suspect, data, going, resume=path)
    assert progress.totals == [6], "two rounds are not done again"
    whole, _ = method.purify(suspect, data, runtime())
    assert same_state(state_of(again), state_of(whole))


def test_without_untrusted_data_it_says_what_to_give() -> None:
    with pytest.raises(InputError, match="DBR needs the data that"):
        GivenDBR().purify(network(0), DefenderData(clean=pictures(24, 3)), runtime())


def test_defaults_are_those_of_the_paper() -> None:
    assert GivenDBR() == GivenDBR(rounds=20, batch_size=128, learning_rate=1e-4, augmentation="crop-flip")
