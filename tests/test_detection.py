"""How well a sifter did: against plain loops over pairs and thresholds, and where the answer is known."""

from __future__ import annotations

import math
from statistics import fmean, variance

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unbackdoor.attacks.base import CLEAN, COVER, POISON
from unbackdoor.detection import auroc, detection, threshold
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Proportion
from unbackdoor.sift import Suspicion

SCORES = st.lists(st.integers(0, 6), min_size=1, max_size=12)
"""Few values, so that there are ties."""


def tensor(values: list[int] | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def suspicion(scores: list[float], poisoned: list[int]) -> Suspicion:
    held = torch.zeros(len(scores), dtype=torch.bool)
    held[poisoned] = True
    return Suspicion(scores=tensor(scores), clean=~held, poisoned=held)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SCORES, SCORES)
def test_the_area_and_its_interval_are_those_of_a_loop_over_all_pairs(poisoned: list[int], clean: list[int]) -> None:
    won = [[(p > c) + 0.5 * (p == c) for c in clean] for p in poisoned]
    by_poisoned = [fmean(row) for row in won]
    by_clean = [fmean(column) for column in zip(*won)]
    area = fmean(by_poisoned)
    spread = sum(variance(one) / len(one) for one in (by_poisoned, by_clean) if len(one) > 1)
    found = auroc(tensor(poisoned), tensor(clean))
    assert found.value == pytest.approx(area)
    assert found.low == pytest.approx(max(0, area - 1.96 * math.sqrt(spread)), abs=1e-6)
    assert found.high == pytest.approx(min(1, area + 1.96 * math.sqrt(spread)), abs=1e-6)


def test_the_interval_holds_the_true_area_in_about_95_of_100_samples() -> None:
    """Normal scores a standard deviation apart have an area of 0.7602."""
    draws = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        found = auroc(torch.randn(60, generator=draws) + 1, torch.randn(200, generator=draws))
        held += found.low <= 0.76025 <= found.high
    assert 275 <= held <= 295


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SCORES, st.lists(st.integers(0, 6), min_size=1, max_size=300), st.sampled_from([0.0, 0.01, 0.1, 0.5]))
def test_no_lower_threshold_has_as_few_false_alarms(poisoned: list[int], clean: list[int], share: float) -> None:
    level = threshold(tensor(clean), share)
    best = max(
        sum(p > candidate for p in poisoned)
        for candidate in (-1, *range(7))
        if sum(c > candidate for c in clean) <= share * len(clean) + 1e-9
    )
    assert sum(c > level for c in clean) <= share * len(clean) + 1e-9
    assert sum(p > level for p in poisoned) == best


def test_one_percent_of_three_hundred_rows_are_three() -> None:
    """In binary numbers 0.01 of 300 is a little less than 3."""
    assert threshold(torch.arange(300.0), 0.01) == 296


def test_a_known_answer() -> None:
    kinds = torch.tensor([POISON] * 4 + [CLEAN] * 5 + [COVER], dtype=torch.uint8)
    found = detection(suspicion([9, 8, 7, 1, 2, 3, 4, 5, 6, 99], [0, 1, 4, 9]), kinds)
    assert found.held == Proportion(4, 10)
    assert found.tpr == Proportion(2, 4)
    assert found.fpr == Proportion(1, 5), "the cover is no false alarm"
    assert found.auroc is not None
    assert found.auroc.value == pytest.approx(15 / 20), "the cover's score does not count"
    assert found.tpr_at_1 == Proportion(3, 4)
    metrics = found.to_metrics()
    assert metrics["tpr"] == 0.5
    assert metrics["tpr_low"] < 0.5 < metrics["tpr_high"]
    assert {name.removesuffix("_low").removesuffix("_high") for name in metrics} == {
        "held",
        "tpr",
        "fpr",
        "auroc",
        "tpr_at_1",
    }


def test_of_clean_data_only_false_alarms_are_known() -> None:
    for kinds in (None, torch.zeros(4, dtype=torch.uint8)):
        found = detection(suspicion([1, 2, 3, 4], [3]), kinds)
        assert (found.held, found.fpr) == (Proportion(1, 4), Proportion(1, 4))
        assert (found.tpr, found.auroc, found.tpr_at_1) == (None, None, None)


def test_scores_the_wrong_way_round_are_worse_than_chance() -> None:
    kinds = torch.tensor([POISON, POISON, CLEAN, CLEAN], dtype=torch.uint8)
    found = detection(suspicion([1, 2, 3, 4], [2, 3]), kinds)
    assert found.auroc is not None
    assert (found.auroc.value, found.tpr, found.fpr) == (0, Proportion(0, 2), Proportion(2, 2))


def test_the_order_of_the_rows_changes_nothing() -> None:
    draws = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 9, (80,), generator=draws).float().tolist()
    kinds = torch.randint(0, 3, (80,), generator=draws).to(torch.uint8)
    order = torch.randperm(80, generator=draws)
    held = [row for row in range(80) if scores[row] > 6]
    moved = [place for place, row in enumerate(order.tolist()) if scores[row] > 6]
    before = detection(suspicion(scores, held), kinds)
    after = detection(suspicion([scores[row] for row in order.tolist()], moved), kinds[order])
    assert after.to_metrics() == pytest.approx(before.to_metrics())


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(InputError, match="4 rows were sifted, but what they are is known of 3"):
        detection(suspicion([1, 2, 3, 4], []), torch.zeros(3, dtype=torch.uint8))
