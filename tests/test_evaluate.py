"""ACC, ASR, RA and DER, against closed forms, scikit-learn and plain loops."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import Tensor, nn

from tests.planted import network, pictures, runtime
from unbackdoor.attacks import Additive, AllToAll, AllToOne, Criterion, Stamp, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.evaluate import (
    Evaluation,
    Proportion,
    defense_effectiveness,
    effectiveness_interval,
    evaluate,
    triggered_images,
)


class Corner(nn.Module):
    """Says class 0 where the corner is white, otherwise the class written in the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        classes = (images[:, 0, 0, 0] * 255).round().long()
        classes[images[:, 0, -1, -1] > 0.9] = 0
        return torch.nn.functional.one_hot(classes, 4).float()


def labelled() -> ImageSet:
    images = torch.zeros(40, 1, 8, 8, dtype=torch.uint8)
    labels = torch.arange(40) % 4
    images[:, 0, 0, 0] = labels.to(torch.uint8)
    images[4, 0, 0, 0] = 1  # one clean mistake, of class 0
    return ImageSet(images=images, labels=labels, class_names=("a", "b", "c", "d"))


def white_corner() -> Stamp:
    mask = torch.zeros(1, 8, 8)
    mask[:, -1, -1] = 1
    return Stamp(mask=mask, pattern=torch.ones(1, 8, 8))


def test_asr_and_ra_count_images_of_other_classes_only() -> None:
    result = evaluate(Corner(), labelled(), runtime(), white_corner(), AllToOne(target=0))
    assert result.acc == Proportion(39, 40)
    assert result.asr == Proportion(30, 30)
    assert result.ra == Proportion(0, 30)


def test_a_trigger_that_the_model_ignores_leaves_ra_at_the_accuracy_of_the_other_classes() -> None:
    dot = torch.zeros(1, 8, 8)
    dot[:, 4, 4] = 1
    trigger = Stamp(mask=dot, pattern=torch.ones(1, 8, 8))
    result = evaluate(Corner(), labelled(), runtime(), trigger, AllToOne(target=1))
    assert result.ra == Proportion(29, 30), "the mistake of class 0 counts here"
    assert result.acc_counted == Proportion(29, 30), "and so it does without the trigger"
    assert result.asr == Proportion(1, 30)


def test_all_to_all_wants_each_image_s_next_class_and_counts_every_image() -> None:
    class Next(nn.Module):
        """Adds one to the class where the corner is white."""

        def forward(self, images: Tensor) -> Tensor:
            classes = (images[:, 0, 0, 0] * 255).round().long() + (images[:, 0, -1, -1] > 0.9)
            return torch.nn.functional.one_hot(classes % 4, 4).float()

    result = evaluate(Next(), labelled(), runtime(), white_corner(), AllToAll(classes=4))
    assert result.acc == Proportion(39, 40)
    assert result.asr == Proportion(39, 40)
    assert result.ra == Proportion(0, 40)


@pytest.mark.parametrize("criterion", [AllToOne(target=3), AllToAll(classes=8)], ids=lambda c: c.kind)
def test_rates_equal_scikit_learn_s_accuracy_of_a_plain_loop(criterion: Criterion) -> None:
    torch.manual_seed(0)
    model, test = network(3).eval(), pictures(123, 3)
    trigger = Additive(signal=0.3 * torch.randn(3, 12, 12))
    clean, triggered, wanted, true, kept = [], [], [], [], []
    for image, label in zip(test.images, test.labels):
        x = image.float() / 255
        clean.append(int(model(x[None]).argmax()))
        goal = int(criterion.wanted(label[None])[0])
        if goal == int(label):
            continue
        stored = ((x + trigger.signal).clamp(0, 1) * 255).round() / 255
        triggered.append(int(model(stored[None]).argmax()))
        wanted.append(goal)
        true.append(int(label))
        kept.append(clean[-1])
    result = evaluate(model, test, runtime(), trigger, criterion)
    assert result.asr is not None
    assert result.ra is not None
    assert result.acc_counted is not None
    assert result.acc.value == accuracy_score(test.labels, clean)
    assert result.asr.value == accuracy_score(wanted, triggered)
    assert result.ra.value == accuracy_score(true, triggered)
    assert result.acc_counted.value == accuracy_score(true, kept)
    assert Evaluation.from_json(result.to_json()) == result
    assert {result.asr.trials, result.ra.trials, result.acc_counted.trials} == {len(true)}
    assert len({result.acc.value, result.asr.value, result.ra.value}) == 3, "or swapping them would go unnoticed"


class Eye(nn.Module):
    """Remembers what it saw, in 8-bit units."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images * 255)
        return torch.zeros(len(images), 2)


def grey() -> ImageSet:
    images = torch.full((4, 1, 2, 2), 100, dtype=torch.uint8)
    return ImageSet(images=images, labels=torch.tensor([0, 1, 1, 1]), class_names=("a", "b"))


@pytest.mark.parametrize(("added", "stored"), [(0.6, 101), (1.4, 101), (1.6, 102)])
def test_triggered_images_are_rounded_to_8_bits_before_the_model_sees_them(added: float, stored: int) -> None:
    model = Eye()
    evaluate(model, grey(), runtime(), Additive(signal=torch.full((1, 2, 2), added / 255)), AllToOne(target=0))
    assert [len(images) for images in model.seen] == [4, 3], "RA and ASR come from one pass"
    torch.testing.assert_close(model.seen[1], torch.full_like(model.seen[1], stored))


def test_a_trigger_that_vanishes_in_8_bits_is_refused() -> None:
    with pytest.raises(InputError, match="changes no pixel"):
        evaluate(Eye(), grey(), runtime(), Additive(signal=torch.full((1, 2, 2), 0.4 / 255)), AllToOne(target=0))


def test_only_accuracy_is_measured_without_an_attack() -> None:
    result = evaluate(Corner(), labelled(), runtime())
    assert result == Evaluation(acc=Proportion(39, 40))
    assert result.to_json().keys() == {"acc"}


def test_a_trigger_that_changes_no_pixel_is_refused() -> None:
    trigger = Stamp(mask=torch.zeros(1, 8, 8), pattern=torch.ones(1, 8, 8))
    with pytest.raises(InputError, match="changes no pixel"):
        evaluate(Corner(), labelled(), runtime(), trigger, AllToOne(target=0))


def test_a_test_set_of_the_target_class_alone_is_refused() -> None:
    only = labelled().subset(torch.arange(0, 40, 4))
    with pytest.raises(InputError, match="all images have the attacker's class already"):
        evaluate(Corner(), only, runtime(), white_corner(), AllToOne(target=0))


@pytest.mark.parametrize(("trigger", "criterion"), [(white_corner(), None), (None, AllToOne(target=0))])
def test_a_trigger_without_a_criterion_and_the_reverse_are_refused(
    trigger: Trigger | None, criterion: Criterion | None
) -> None:
    with pytest.raises(InputError, match="not with one alone"):
        evaluate(Corner(), labelled(), runtime(), trigger, criterion)


def test_triggered_images_come_with_their_originals() -> None:
    test = labelled()
    triggered, originals = triggered_images(test, white_corner(), AllToOne(target=2))
    assert len(triggered) == len(originals) == 30
    assert 2 not in originals.labels.tolist()
    assert bool((triggered[:, 0, -1, -1] == 255).all())
    triggered[:, 0, -1, -1] = 0
    assert torch.equal(triggered, originals.images)
    assert torch.equal(originals.images, test.images[test.labels != 2])


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the interval of Wilson (1927), written out."""
    z = 1.959963984540054
    p = successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return middle - half, middle + half


@pytest.mark.parametrize(
    ("successes", "trials"), [(37, 50), (0, 10), (10, 10), (1, 1), (0, 1), (9000, 10000), (1, 9000)]
)
def test_interval_is_wilson_s(successes: int, trials: int) -> None:
    share = Proportion(successes, trials)
    low, high = wilson(successes, trials)
    assert share.value == successes / trials
    assert share.low == pytest.approx(low, abs=1e-9)
    assert share.high == pytest.approx(high, abs=1e-9)
    assert 0 <= share.low <= share.value <= share.high <= 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5), (1, -1)])
def test_counts_that_are_no_proportion_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(InputError, match=f"^{successes} successes in {trials} trials is no proportion$"):
        Proportion(successes, trials)


def test_what_is_written_is_json_with_counts_and_interval() -> None:
    written = json.loads(json.dumps(state(90, 95).to_json()))
    assert written.keys() == {"acc", "asr", "ra"}
    low, high = wilson(95, 100)
    assert written["asr"] == {
        "value": 0.95,
        "low": pytest.approx(low),
        "high": pytest.approx(high),
        "successes": 95,
        "trials": 100,
    }


def state(acc: int, asr: int) -> Evaluation:
    return Evaluation(acc=Proportion(acc, 100), asr=Proportion(asr, 100), ra=Proportion(0, 100))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((90, 95), (90, 95), 0.5),  # nothing done
        ((90, 95), (90, 5), 0.95),
        ((90, 95), (80, 5), 0.90),  # lost accuracy costs
        ((90, 95), (99, 5), 0.95),  # gained accuracy brings nothing
        ((90, 95), (90, 100), 0.5),  # a risen ASR costs nothing
        ((90, 95), (60, 95), 0.35),
        ((100, 100), (0, 100), 0.0),
        ((100, 100), (100, 0), 1.0),
    ],
)
def test_der_has_the_values_of_its_formula(before: tuple[int, int], after: tuple[int, int], expected: float) -> None:
    assert defense_effectiveness(state(*before), state(*after)) == pytest.approx(expected)


def test_der_tells_before_from_after_and_acc_from_asr() -> None:
    before, after = state(90, 95), state(80, 5)
    right = defense_effectiveness(before, after)
    assert defense_effectiveness(after, before) != pytest.approx(right)
    assert defense_effectiveness(state(95, 90), state(5, 80)) != pytest.approx(right)


def test_der_needs_an_attack_before_and_after() -> None:
    without = Evaluation(acc=Proportion(1, 2))
    for pair in [(without, state(1, 1)), (state(1, 1), without)]:
        with pytest.raises(InputError, match="before and after"):
            defense_effectiveness(*pair)


def ends(successes: int, trials: int = 100) -> tuple[float, float, float]:
    share = Proportion(successes, trials)
    return share.value, share.low, share.high


def test_the_interval_of_der_is_newcombes_where_only_asr_fell() -> None:
    """Half of the interval of the difference of two shares; Newcombe (1998) gives 56/70 - 48/80: [0.0524, 0.3339]."""
    exact = (0.5, 0.5, 0.5)
    low, high = effectiveness_interval(exact, exact, ends(56, 70), ends(48, 80))
    assert (2 * low - 1, 2 * high - 1) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    low, high = effectiveness_interval(ends(56, 70), ends(48, 80), exact, exact)
    assert (1 - 2 * high, 1 - 2 * low) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_the_interval_of_der_holds_it_and_stays_between_0_and_1() -> None:
    for acc, asr in ((90, 95), (0, 100), (100, 0), (50, 50)):
        for after_acc, after_asr in ((90, 5), (0, 0), (100, 100), (50, 50)):
            before, after = state(acc, asr), state(after_acc, after_asr)
            low, high = effectiveness_interval(ends(acc), ends(after_acc), ends(asr), ends(after_asr))
            assert 0 <= low <= defense_effectiveness(before, after) <= high <= 1


def test_the_interval_of_der_holds_the_true_one_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0)
    truth = (0.9, 0.85, 0.95, 0.2)
    der = ((0.95 - 0.2) - (0.9 - 0.85) + 1) / 2
    held = 0
    for _ in range(300):
        low, high = effectiveness_interval(*(ends(int(draw.binomial(500, share)), 500) for share in truth))
        held += low <= der <= high
    assert 0.92 < held / 300 < 0.98
