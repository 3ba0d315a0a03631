"""Correlations, overlaps, concentration and intervals, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unbackdoor.inspect.agreement import chance_overlap, correlations, gini, mean_interval, top_overlap


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pearson_and_spearman_are_those_of_their_definitions() -> None:
    a, b = drawn(40), drawn(40, 1) + drawn(40)
    pearson, spearman = correlations(a, b)
    assert pearson == pytest.approx(float(np.corrcoef(a, b)[0, 1]))
    ranks = [values.argsort().argsort() for values in (a, b)]
    assert spearman == pytest.approx(float(np.corrcoef(*ranks)[0, 1]))
    assert abs(pearson - spearman) > 1e-3


def test_spearman_sees_any_rising_curve_and_pearson_only_a_line() -> None:
    a = drawn(30)
    assert correlations(a, a.exp().pow(9)) == (pytest.approx(0.8, abs=0.15), pytest.approx(1.0))
    assert correlations(a, -2 * a) == (pytest.approx(-1.0), pytest.approx(-1.0))


@pytest.mark.parametrize(("one", "other"), [([1.0, 2.0], [2.0, 1.0]), ([1.0] * 5, [1.0, 2, 3, 4, 5])])
def test_what_has_no_correlation_gives_none(one: list[float], other: list[float]) -> None:
    assert all(math.isnan(value) for value in correlations(torch.tensor(one), torch.tensor(other)))
    assert all(math.isnan(value) for value in correlations(torch.tensor(other), torch.tensor(one)))


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_the_overlap_is_that_of_two_sets(count: int, share: float, seed: int) -> None:
    a, b = drawn(count, seed), drawn(count, seed + 1)
    size = max(1, math.floor(share * count + 1e-9))
    sets = [{*sorted(range(count), key=lambda i, v=values: -v[i])[:size]} for values in (a, b)]
    assert top_overlap(a, b, share) == pytest.approx(len(sets[0] & sets[1]) / size)
    assert top_overlap(a, a, share) == 1


def test_three_tenths_of_ten_are_three() -> None:
    a, b = torch.arange(10.0), torch.tensor([0.0, 1, 2, 3, 4, 5, 9, 6, 8, 7])
    assert top_overlap(a, b, 0.3) == pytest.approx(2 / 3)


def test_the_overlap_by_layers_alone_is_the_mean_over_shuffles_within_layers() -> None:
    one, other = [drawn(20), drawn(10, 1) + 0.5, drawn(5, 2) + 0.9], [drawn(20, 3), drawn(10, 4) + 0.5, drawn(5, 5) + 1]
    generator = torch.Generator().manual_seed(0)

    def shuffled() -> float:
        mixed = [layer[torch.randperm(len(layer), generator=generator)] for layer in other]
        return top_overlap(torch.cat(one), torch.cat(mixed), 0.25)

    found = chance_overlap(one, other, 0.25)
    assert found == pytest.approx(sum(shuffled() for _ in range(3000)) / 3000, abs=0.02)
    assert found > 0.35, "layers alone explain more than chance, 0.25"
    assert chance_overlap([drawn(40)], [drawn(40, 1)], 0.25) == pytest.approx(0.25)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_gini_is_half_the_mean_difference_by_the_mean(values: list[float]) -> None:
    numbers = np.array(values)
    found = gini(torch.tensor(values, dtype=torch.float64))
    if not numbers.sum() > 0:
        assert math.isnan(found)
        return
    expected = np.abs(numbers[:, None] - numbers[None, :]).mean() / (2 * numbers.mean())
    assert found == pytest.approx(expected, abs=1e-9)


def test_the_interval_is_student_s() -> None:
    from scipy import stats

    values = drawn(12).tolist()
    low, high = stats.t.interval(0.95, 11, loc=np.mean(values), scale=stats.sem(values))
    assert mean_interval(values) == pytest.approx({"value": np.mean(values), "low": low, "high": high})
    assert math.isnan(mean_interval([1.0])["low"])
