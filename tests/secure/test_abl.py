"""ABL: its stages, and whether it keeps a planted backdoor out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.planted import network, pictures, runtime
from tests.purify.stages import StopsIn
from tests.refusals import refused
from unbackdoor.attacks import POISON, BadNets, FittedAttack
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.evaluate import evaluate
from unbackdoor.secure import ABL
from unbackdoor.secure.abl import _Ascent, _Falling
from unbackdoor.secure.isolation import lowest
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime, fit, losses_of
from unbackdoor.training.bounded import Bounded

SHORT: dict[str, Any] = {"isolation_epochs": 2, "epochs": 2, "unlearning_epochs": 2, "batch_size": 40, "isolated": 0.1}


def poisoned(seed: int, hard: bool) -> FittedAttack:
    """Poison pictures; `hard`: of classes that cannot be learned, so that the backdoor is easier than any of them."""
    images = pictures(800, 10 * seed)
    if hard:
        order = torch.randperm(800, generator=torch.Generator().manual_seed(seed))
        images = replace(images, labels=images.labels[order])
    return BadNets(target=5, poison_rate=0.1, size=5).prepare(images, lambda: network(seed), runtime(seed))


def isolated(method: ABL, train: ImageSet, seed: int) -> torch.Tensor:
    early = network(seed)
    fit(early, train, method._recipes()[0], runtime(seed), hook=Bounded(method.gamma))
    return lowest(losses_of(early, train, runtime()), method.isolated)[0]


METHOD = ABL(
    isolation_epochs=6, epochs=4, batch_size=32, isolated=0.05, unlearning_rate=1e-3, augmentation="none"
)  # fmt: skip


@pytest.mark.parametrize("seed", [1, 4])
def test_a_backdoor_that_is_easier_than_the_classes_is_isolated_and_unlearned(seed: int) -> None:
    fitted, test = poisoned(seed, hard=True), pictures(320, 10 * seed + 1)
    assert bool((fitted.kinds[isolated(METHOD, fitted.train, seed)] == POISON).all())
    data = DefenderData(untrusted=fitted.train)
    with_it, without = (
        evaluate(
            method.train(lambda: network(seed), data, runtime(seed)).network,
            test,
            runtime(),
            fitted.trigger,
            fitted.criterion,
        ).asr
        for method in (METHOD, replace(METHOD, unlearning_rate=1e-12))
    )
    assert with_it is not None
    assert without is not None
    assert without.value > 0.4, "leaving images out alone does not suffice: half of the poisoned ones are still there"
    assert with_it.value < 0.1


@pytest.mark.parametrize("seed", [1, 4])
def test_where_classes_are_easier_clean_images_are_isolated_which_the_card_says(seed: int) -> None:
    fitted = poisoned(seed, hard=False)
    assert float((fitted.kinds[isolated(METHOD, fitted.train, seed)] == POISON).float().mean()) < 0.6


def test_the_rate_falls_to_a_tenth_in_the_last_third() -> None:
    model, data = network(0), pictures(16, 0)
    rates = []
    for progress in (0.0, 0.6, 0.67, 0.9):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        hook = _Falling()
        hook.begin(model, Recipe(), runtime())
        batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(16), progress=progress)
        hook.update(model, batch, optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_unlearning_climbs() -> None:
    model, data = network(0), pictures(40, 0)
    before = float(losses_of(model, data, runtime()).mean())
    recipe = Recipe(
        epochs=5, batch_size=40, learning_rate=0.01, label_smoothing=0.0, ema=0.0, train_mode=False, low_resolution=0.0
    )  # fmt: skip
    fit(model, data, recipe, runtime(), hook=_Ascent())
    assert float(losses_of(model, data, runtime()).mean()) > before


@pytest.mark.parametrize("where", ["isolation", "ABL", "unlearning"])
def test_an_interrupted_run_goes_on_in_every_stage(where: str, tmp_path: Path) -> None:
    path, method, data = tmp_path / "resume.pt", ABL(**SHORT), DefenderData(untrusted=pictures(80, 0))
    stopping = Runtime(
        device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 2 if where == "unlearning" else 3)
    )  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        method.train(lambda: network(0), data, stopping, resume=path)
    progress = StopsIn("nothing", 0)
    going = Runtime(device="cpu", precision="fp32", threads=1, progress=progress)
    again = method.train(lambda: network(0), data, going, resume=path)
    expected = {"isolation": [2, 4, 2], "ABL": [0, 2, 2], "unlearning": [0, 0, 1]}
    assert progress.totals == expected[where], "finished epochs are not done again"
    whole = method.train(lambda: network(0), data, runtime())
    assert same_state(state_of(again.network), state_of(whole.network))
    assert "isolated 8 of 80 images" in whole.history.notes[0]


@pytest.mark.parametrize("options", [{"isolated": 0.0}, {"isolated": 1.0}, {"gamma": -1.0}, {"epochs": 0}], ids=str)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    refused(ABL, options)


def test_defaults_are_those_of_the_benchmark() -> None:
    expected = ABL(
        isolation_epochs=20,
        gamma=0.5,
        isolated=0.01,
        epochs=60,
        learning_rate=0.01,
        unlearning_epochs=20,
        unlearning_rate=1e-4,
        batch_size=128,
        weight_decay=1e-4,
        augmentation="crop-flip",
    )
    assert ABL() == expected
