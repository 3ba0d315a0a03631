"""DBD: its losses against plain loops, its stages, what it believes, and whether it keeps a planted backdoor out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.planted import network, pictures, planted, runtime
from tests.purify.stages import StopsIn
from tests.refusals import refused
from unbackdoor.attacks import POISON
from unbackdoor.data import DefenderData
from unbackdoor.evaluate import evaluate
from unbackdoor.secure import DBD
from unbackdoor.secure.dbd import MixMatch, SymmetricEntropy, beta, mixed_loss, sharpened, symmetric_entropy
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Batch, Recipe, Runtime, fit, logits_of

SHORT: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 24,
    "learning_rate": 0.05,
    "projection": 8,
    "head_epochs": 2,
    "fine_epochs": 2,
    "fine_batch_size": 24,
}


def test_symmetric_entropy_is_the_sum_of_both_directions() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    for row, (found, label) in enumerate(zip(symmetric_entropy(logits, labels), labels.tolist())):
        p = [float(value) for value in logits[row].softmax(0)]
        y = [1.0 if k == label else 1e-4 for k in range(4)]
        expected = 0.1 * -math.log(p[label]) + 1.0 * -sum(p[k] * math.log(y[k]) for k in range(4))
        assert float(found) == pytest.approx(expected, rel=1e-5)


def test_sharpening_makes_probabilities_steeper_and_a_temperature_of_one_does_not() -> None:
    given = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    squares = given**2
    torch.testing.assert_close(sharpened(given, 0.5), squares / squares.sum(1, keepdim=True))
    torch.testing.assert_close(sharpened(given, 1.0), given)


def test_the_mixed_loss_equals_a_loop_over_the_rows() -> None:
    draws = torch.Generator().manual_seed(1)
    logits, targets = torch.randn(7, 3, generator=draws), torch.rand(7, 3, generator=draws).softmax(1)
    trusted = torch.tensor([True, False, True, True, False, False, False])
    known, guessed = [], []
    for row in range(7):
        p = logits[row].softmax(0)
        if trusted[row]:
            known.append(-sum(float(targets[row, k]) * math.log(float(p[k])) for k in range(3)))
        else:
            guessed.append(sum((float(p[k]) - float(targets[row, k])) ** 2 for k in range(3)) / 3)
    expected = sum(known) / 3 + 15 * sum(guessed) / 4
    assert float(mixed_loss(logits, targets, trusted, 15.0)) == pytest.approx(expected, rel=1e-5)
    assert float(mixed_loss(logits, targets, ~trusted & trusted, 0.0)) == 0


def test_shares_of_the_mixture_are_drawn_from_their_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([beta(0.75, generator) for _ in range(2000)])
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(drawn.var()) == pytest.approx(1 / (4 * (2 * 0.75 + 1)), rel=0.1)


def mixing(**changes: Any) -> MixMatch:
    options = {"credible": 0.25, "augmentation": "none", "sharpening": 0.5, "mixing": 0.75, "unlabelled": 15.0}
    return MixMatch(pictures(48, 0), **{**options, **changes})


def test_the_rows_that_the_model_finds_easiest_are_believed_and_chosen_anew() -> None:
    model, hook = network(0), mixing()
    hook.begin(model, Recipe(), runtime())
    losses = symmetric_entropy(logits_of(model, hook.data.images, runtime()), hook.data.labels)
    assert hook.trusted.sum() == 12
    assert float(losses[hook.trusted].max()) <= float(losses[~hook.trusted].min())
    before = hook.trusted.clone()
    other = network(1)
    assert not hook.finished(other)
    assert hook.trusted.sum() == 12
    assert not torch.equal(before, hook.trusted)


def test_labels_of_rows_that_are_not_believed_do_not_matter() -> None:
    model = network(0).eval()
    losses = []
    for change in (0, 3):
        hook = mixing()
        hook.begin(model, Recipe(), runtime())
        labels = torch.where(hook.trusted, hook.data.labels, (hook.data.labels + change) % 8)
        batch = Batch(images=hook.data.images.float() / 255, targets=labels, rows=torch.arange(48), progress=0.5)
        losses.append(float(hook.loss(model, hook.batch(model, batch, torch.Generator().manual_seed(0))).detach()))
    assert losses[0] == losses[1]
    swapped = (hook.data.labels + 1) % 8
    batch = Batch(images=hook.data.images.float() / 255, targets=swapped, rows=torch.arange(48), progress=0.5)
    loss = float(hook.loss(model, hook.batch(model, batch, torch.Generator().manual_seed(0))).detach())
    assert loss != losses[0], "those of the others do"


def test_the_loss_of_a_batch_is_that_of_mixed_views_and_targets() -> None:
    """Written out once more, with the draws that the hook made."""
    model, hook = network(0).eval(), mixing()
    hook.begin(model, Recipe(), runtime())
    batch = Batch(images=hook.data.images.float() / 255, targets=hook.data.labels, rows=torch.arange(48), progress=0.5)
    made = hook.batch(model, batch, torch.Generator().manual_seed(0))
    assert 0.5 <= hook.share <= 1
    answers = model(made.images).softmax(1)
    guess = ((answers[:48] + answers[48:]) / 2) ** 2
    guess = (guess / guess.sum(1, keepdim=True)).repeat(2, 1)
    trusted = hook.trusted.repeat(2)
    targets = torch.stack(
        [F.one_hot(made.targets[row], 8).float() if trusted[row] else guess[row] for row in range(96)]
    )
    share, order = hook.share, hook.order
    logits = model(share * made.images + (1 - share) * made.images[order])
    expected = mixed_loss(logits, share * targets + (1 - share) * targets[order], trusted, 7.5)
    assert float(hook.loss(model, made).detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_the_classifier_learns_alone_and_then_everything_does() -> None:
    data, model = pictures(96, 0), network(0)
    method = DBD(**{**SHORT, "fine_learning_rate": 1e-12})
    still = method.train(lambda: network(0), DefenderData(untrusted=data), runtime()).network
    moved = DBD(**SHORT).train(lambda: network(0), DefenderData(untrusted=data), runtime()).network
    fresh = model.state_dict()
    weights = [name for name, _ in model.named_parameters()]
    learned, tuned = still.state_dict(), moved.state_dict()
    assert not torch.allclose(learned["body.0.weight"], fresh["body.0.weight"], atol=1e-6)
    assert all(not torch.equal(tuned[name], learned[name]) for name in weights)


@pytest.mark.parametrize("seed", [1, 4])
def test_a_planted_backdoor_is_kept_out(seed: int) -> None:
    models = planted(seed)
    method = DBD(
        epochs=15, batch_size=100, learning_rate=0.05, head_epochs=8, head_learning_rate=0.01, fine_epochs=4,
        fine_batch_size=64, fine_learning_rate=2e-3, augmentation="none",
    )  # fmt: skip
    trained = method.train(lambda: network(seed), DefenderData(untrusted=models.fitted.train), runtime(seed))
    plain, secure = (
        evaluate(model, models.test, runtime(), models.fitted.trigger, models.fitted.criterion)
        for model in (models.suspect, trained.network)
    )
    assert plain.asr is not None
    assert secure.asr is not None
    assert plain.asr.value > 0.95
    assert secure.asr.value < 0.2
    assert secure.acc.value > 0.7


def test_few_poisoned_rows_are_believed_after_features_without_labels() -> None:
    models = planted(1)
    data, kinds = models.fitted.train, models.fitted.kinds

    def believed(model: nn.Module) -> float:
        hook = MixMatch(data, 0.5, "none", 0.5, 0.75, 15.0)
        hook.begin(model, Recipe(), runtime())
        return float((kinds[hook.trusted] == POISON).float().mean())

    plain = believed(models.suspect)
    assert plain > 0.05, "a model with the backdoor believes its poison as much as anything"
    method = DBD(
        epochs=15, batch_size=100, learning_rate=0.05, head_epochs=8, head_learning_rate=0.01, fine_epochs=1,
        fine_learning_rate=1e-12, augmentation="none",
    )  # fmt: skip
    careful = method.train(lambda: network(1), DefenderData(untrusted=data), runtime(1)).network
    assert believed(careful) < 0.03


@pytest.mark.parametrize("where", ["DBD: features", "DBD: classifier", "DBD: both"])
def test_an_interrupted_run_goes_on_in_every_stage(where: str, tmp_path: Path) -> None:
    path, method, data = tmp_path / "resume.pt", DBD(**SHORT), DefenderData(untrusted=pictures(96, 0))
    stopping = Runtime(device="cpu", precision="fp32", threads=1, progress=StopsIn(where, 5))
    with pytest.raises(KeyboardInterrupt):
        method.train(lambda: network(0), data, stopping, resume=path)
    again = method.train(lambda: network(0), data, runtime(), resume=path)
    whole = method.train(lambda: network(0), data, runtime())
    assert same_state(state_of(again.network), state_of(whole.network))
    assert whole.history.notes == ("DBD used the labels of 48 of 96 images in the end.",)


def test_symmetric_entropy_follows_labels_less_than_cross_entropy_where_they_are_wrong() -> None:
    """With a third of the labels wrong, the plain loss learns more of them."""
    data = pictures(240, 0)
    wrong = torch.arange(240) % 3 == 0
    labels = torch.where(wrong, (data.labels + 1) % 8, data.labels)
    noisy = type(data)(images=data.images, labels=labels, class_names=data.class_names)
    recipe = Recipe(
        epochs=12, batch_size=40, learning_rate=0.01, optimizer="Adam", schedule="constant", label_smoothing=0.0,
        ema=0.0, augmentation="none", low_resolution=0.0,
    )  # fmt: skip

    def learned(hook: SymmetricEntropy | None) -> Tensor:
        model = network(0)
        fit(model, noisy, recipe, runtime(), hook=hook)
        answers: Tensor = logits_of(model, noisy.images, runtime()).argmax(1)
        return (answers[wrong] == labels[wrong]).float().mean()

    assert float(learned(SymmetricEntropy())) < float(learned(None)) - 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"sharpening": 0.0},
        {"mixing": math.inf},
        {"projection": 0},
        {"credible": 1.0},
        {"credible": 0.0},
        {"unlabelled": -1.0},
        {"fine_epochs": 0},
        {"augmentation": "cutmix"},
        {"augmentation": "none of them"},
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    refused(DBD, options)
