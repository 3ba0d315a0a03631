"""D-ST: its losses against plain loops, its stages, and whether it keeps a planted backdoor out with the rows known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.parted import GivenDST, every_few, partly_known
from tests.planted import network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.refusals import refused
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network
from unbackdoor.secure.d_st import DST, Contrast, MixedEntropy, Positives, Projected, contrastive_loss, positive_pairs
from unbackdoor.sift import FCT, Suspicion
from unbackdoor.testing import check_secure_trainer
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 24, "projection": 8, "head_epochs": 2, "head_learning_rate": 0.1}


@pytest.mark.parametrize("positives", ["paper", "code"])
def test_the_contrastive_loss_equals_a_loop_over_all_views(positives: Positives) -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1, 0, 0]).repeat(2)
    clean = torch.tensor([True, True, True, False, False, True]).repeat(2)
    views = F.normalize(torch.randn(12, 5, generator=draws), dim=1)
    total = 0.0
    for i in range(12):
        mine = {j for j in range(12) if j != i and j % 6 == i % 6}
        if clean[i]:
            mine |= {
                j for j in range(12) if j != i and labels[j] == labels[i] and (bool(clean[j]) or positives == "code")
            }
        below = sum(math.exp(float(views[i] @ views[a]) / 0.2) for a in range(12) if a != i)
        logs = [math.log(math.exp(float(views[i] @ views[p]) / 0.2) / below) for p in mine]
        total -= sum(logs) / len(logs)
    # In training a product of matrices would be one of bfloat16.
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = contrastive_loss(views, positive_pairs(labels, clean, positives), 0.2)
        assert float(loss) == pytest.approx(total / 12, rel=1e-4)


def test_the_readings_of_positives_differ_in_what_clean_anchors_attract() -> None:
    labels, clean = torch.tensor([0, 0, 0]).repeat(2), torch.tensor([True, True, False]).repeat(2)
    paper, code = (positive_pairs(labels, clean, one) for one in ("paper", "code"))
    assert paper[0].tolist() == [False, True, False, True, True, False]
    assert code[0].tolist() == [False, True, True, True, True, True]
    assert paper[2].tolist() == code[2].tolist() == [False, False, False, False, False, True]


def test_mixed_entropy_descends_on_clean_rows_and_climbs_on_the_others() -> None:
    model, data = network(0).eval(), pictures(12, 0)
    clean = torch.arange(30) % 3 != 0
    rows = torch.arange(5, 17)
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=rows)
    hook = MixedEntropy(clean, 0.25)
    hook.begin(model, Recipe(), runtime())
    good, bad = clean[rows], ~clean[rows]
    logits = model(batch.images)
    expected = F.cross_entropy(logits[good], data.labels[good]) - 0.25 * F.cross_entropy(logits[bad], data.labels[bad])
    assert float(hook.loss(model, batch).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    alone = Batch(images=batch.images[good], targets=data.labels[good], rows=rows[good])
    plain = F.cross_entropy(logits[good], data.labels[good])
    assert float(hook.loss(model, alone).detach()) == pytest.approx(float(plain.detach()), rel=1e-5)


def test_both_views_of_an_image_differ_and_have_its_label_and_row() -> None:
    data = pictures(10, 0)
    hook = Contrast(torch.ones(10, dtype=torch.bool), 0.1, 0.07, "paper")
    batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(10))
    made = hook.batch(nn.Identity(), batch, torch.Generator().manual_seed(0))
    assert made.images.shape == (20, 3, 12, 12)
    assert not torch.equal(made.images[:10], made.images[10:])
    assert made.targets.tolist() == data.labels.tolist() * 2
    assert made.rows.tolist() == [*range(10), *range(10)]


def test_the_rate_rises_to_that_of_the_cosine() -> None:
    model, data, rates = Projected(network(0), 8, 0), pictures(8, 0), []
    for progress in (0.0, 0.025, 0.05):
        optimizer = torch.optim.SGD(model.parameters(), 0.123)
        hook = Contrast(torch.ones(8, dtype=torch.bool), 0.1, 0.07, "paper")
        hook.begin(model, Recipe(learning_rate=0.5), runtime())
        batch = Batch(images=data.images.float() / 255, targets=data.labels, rows=torch.arange(8), progress=progress)
        hook.update(model, hook.batch(model, batch, torch.Generator().manual_seed(0)), optimizer)
        rates.append(optimizer.param_groups[0]["lr"])
    end = 0.25 * (1 + math.cos(math.pi * 0.05))
    assert rates == pytest.approx([0.01, (0.01 + end) / 2, 0.123]), "after the rise the schedule's own"


def test_features_are_learned_without_the_last_layer_which_then_learns_alone() -> None:
    data = DefenderData(untrusted=pictures(96, 0))
    still = GivenDST(**{**SHORT, "head_learning_rate": 1e-12}).train(lambda: network(0), data, runtime()).network
    moved = GivenDST(**SHORT).train(lambda: network(0), data, runtime()).network
    fresh = network(0)
    for name, value in fresh.state_dict().items():
        last = name.startswith("body.11.")
        ours, theirs = still.state_dict()[name], moved.state_dict()[name]
        if last:
            torch.testing.assert_close(ours, value, atol=1e-6, rtol=0)
            assert not torch.allclose(theirs, value, atol=1e-6)
        else:
            assert torch.equal(ours, theirs), "the features are frozen in the second stage"
            assert not torch.equal(ours, value), "and were learned in the first"


@pytest.mark.parametrize("seed", [1, 4])
def test_a_planted_backdoor_is_kept_out_with_some_of_the_rows_known(seed: int) -> None:
    models = planted(seed)
    method = GivenDST(
        epochs=15, batch_size=100, learning_rate=0.05, head_epochs=20, head_learning_rate=0.5, augmentation="none",
        given=lambda count: partly_known(models.fitted.kinds, good=2, bad=2),
    )  # fmt: skip
    trained = method.train(lambda: network(seed), DefenderData(untrusted=models.fitted.train), runtime(seed))
    plain, secure = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, trained.network)
    )
    assert plain.asr is not None
    assert secure.asr is not None
    assert plain.asr.value > 0.95
    assert secure.asr.value < 0.1
    assert secure.acc.value > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("poisoned", [True, False])
def test_a_planted_backdoor_is_kept_out_with_the_rows_that_fct_finds(poisoned: bool) -> None:
    """And clean data, of which some rows are held poisoned all the same, are learned."""
    models = planted(4)
    method = DST(
        epochs=15, batch_size=100, learning_rate=0.05, head_epochs=20, head_learning_rate=0.5, augmentation="none",
        clean_share=0.5,
    )  # fmt: skip
    rows = models.fitted.train if poisoned else pictures(800, 40)
    trained = method.train(lambda: network(4), DefenderData(untrusted=rows), runtime(4))
    secure = evaluate(trained.network, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
    assert secure.asr is not None
    assert secure.asr.value < 0.1
    assert secure.acc.value > 0.8


def test_it_conforms_with_a_partition_that_is_given() -> None:
    check_secure_trainer(GivenDST(**{**SHORT, "batch_size": 12}))


def test_fct_says_which_rows_are_held_what(monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = pictures(96, 0), []

    def score(sifter: FCT, given: DefenderData, runtime: Runtime, resume: Path | None = None) -> Suspicion:
        asked.append((sifter, given.untrusted, runtime.budget))
        return every_few(96)

    monkeypatch.setattr(FCT, "score", score)
    clean, poisoned = DST(clean_share=0.3).sift(data, replace(runtime(), budget=10.0), None).held()
    assert (len(clean), len(poisoned)) == (72, 8)
    assert asked == [(FCT(clean_share=0.3, poisoned_share=0.05), data, 3.5)]


@pytest.mark.parametrize("where", ["DST: features", "DST: classifier"])
def test_an_interrupted_run_goes_on_in_either_stage(where: str, tmp_path: Path) -> None:
    path, method, data = tmp_path / "resume.pt", GivenDST(**SHORT), DefenderData(untrusted=pictures(96, 0))
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 5))
    with pytest.raises(KeyboardInterrupt):
        method.train(lambda: network(0), data, stopping, resume=path)
    again = method.train(lambda: network(0), data, runtime(), resume=path)
    whole = method.train(lambda: network(0), data, runtime())
    assert same_state(state_of(again.network), state_of(whole.network))


def test_a_network_that_does_not_end_with_a_linear_layer_is_refused() -> None:
    other = Network(nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), network(0).description)
    with pytest.raises(InputError, match="contrastive learning takes the last layer off a network"):
        GivenDST(**SHORT).train(lambda: other, DefenderData(untrusted=pictures(96, 0)), runtime())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"projection": 0},
        {"positives": "both"},
        {"forgetting": -1.0},
        {"head_epochs": 0},
        {"augmentation": "cutmix"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    refused(GivenDST, options)


def test_defaults_are_those_of_the_paper() -> None:
    expected = GivenDST(
        epochs=200,
        batch_size=512,
        learning_rate=0.5,
        weight_decay=1e-4,
        temperature=0.1,
        base_temperature=0.07,
        projection=128,
        positives="paper",
        head_epochs=10,
        head_learning_rate=5.0,
        forgetting=1e-3,
        augmentation="crop-flip",
    )
    assert GivenDST() == expected
