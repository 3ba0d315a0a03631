"""The anomaly index is the scaled distance below the median."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import median_abs_deviation

from unbackdoor.scan.outliers import low_outliers


def values(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 50 + 1


@pytest.mark.parametrize("count", [3, 4, 9, 10, 43])
def test_index_equals_the_formula_of_the_paper(count: int) -> None:
    x = values(count)
    array = x.numpy()
    deviation = np.median(np.abs(array - np.median(array)))
    np.testing.assert_allclose(low_outliers(x).numpy(), (np.median(array) - array) / (1.4826 * deviation))


@pytest.mark.parametrize("count", [3, 4, 43])
def test_spread_is_scipy_s_median_absolute_deviation_scaled_to_a_gaussian(count: int) -> None:
    x = values(count, 1)
    array = x.numpy()
    expected = (np.median(array) - array) / median_abs_deviation(array, scale="normal")
    np.testing.assert_allclose(low_outliers(x).numpy(), expected, rtol=1e-4)


def test_small_values_are_positive_and_large_ones_negative() -> None:
    found = low_outliers(torch.tensor([1.0, 20.0, 21.0, 22.0, 23.0, 80.0]))
    assert found.argmax() == 0
    assert found.argmin() == 5
    assert found[0] > 2 > 0 > found[5]


def test_index_does_not_depend_on_unit_offset_or_order() -> None:
    x = values(11)
    torch.testing.assert_close(low_outliers(7 * x), low_outliers(x))
    torch.testing.assert_close(low_outliers(x + 100), low_outliers(x))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(low_outliers(x[order]), low_outliers(x)[order])


@pytest.mark.parametrize("value", [0.0, 1.0, 144.0])
def test_identical_values_are_no_outliers(value: float) -> None:
    assert low_outliers(torch.full((10,), value)).tolist() == [0.0] * 10


def test_one_small_value_among_identical_ones_is_an_outlier_and_finite() -> None:
    found = low_outliers(torch.tensor([3.0, 30.0, 30.0, 30.0, 30.0]))
    assert bool(found.isfinite().all())
    assert found[0] > 1000
    assert found[1:].tolist() == [0.0] * 4


def test_a_spread_that_means_nothing_is_not_fallen_below() -> None:
    values = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    assert low_outliers(-values)[-1] > 1000
    torch.testing.assert_close(low_outliers(-values, least=0.1)[-1], torch.tensor(10.0))
    wide = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert torch.equal(low_outliers(wide, least=0.1), low_outliers(wide))
