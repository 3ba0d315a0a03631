"""SPECTRE: quantum entropy against a plain formula, and poison that hides in a direction of little variance."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.sift.spread import FEATURES, auroc, reader, runtime, spread
from unbackdoor.errors import InputError
from unbackdoor.sift import SPECTRE, SpectralSignatures
from unbackdoor.sift.spectre import quantum_entropy, whitened


def test_quantum_entropy_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5])
    covariance = np.cov(points.double().numpy().T)
    beyond = np.linalg.norm(covariance, 2) - 1
    weights = scipy.linalg.expm(4 * (covariance - np.eye(3)) / beyond)
    expected = [float(x @ weights @ x / np.trace(weights)) for x in points.double().numpy()]
    assert quantum_entropy(points, 4.0).tolist() == pytest.approx(expected, rel=1e-4)


def test_without_a_direction_beyond_the_identity_all_weigh_alike() -> None:
    points = 0.1 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(quantum_entropy(points, 4.0), points.square().sum(1) / 3, atol=1e-6, rtol=1e-4)


def test_whitening_goes_by_the_many_and_not_by_the_few_far_away() -> None:
    generator = np.random.default_rng(0)
    many = generator.normal(size=(400, 2)) * [3.0, 0.5] + 1
    points = whitened(np.concatenate([many, np.full((60, 2), 40.0)]), 0)
    torch.testing.assert_close(points[:400].mean(0), torch.zeros(2).double(), atol=0.15, rtol=0)
    torch.testing.assert_close(torch.cov(points[:400].T), torch.eye(2).double(), atol=0.2, rtol=0)


def test_a_class_of_which_most_rows_are_one_and_the_same_is_scored_all_the_same() -> None:
    generator = np.random.default_rng(0)
    some = generator.normal(size=(40, 3))
    points = whitened(np.concatenate([some, np.repeat(some[:1], 60, axis=0)]), 0)
    assert bool(points.isfinite().all())
    torch.testing.assert_close(points.mean(0), torch.zeros(3).double(), atol=1e-6, rtol=0)


def test_poison_in_a_direction_of_little_variance_is_found_where_the_first_singular_vector_misses_it() -> None:
    scale = torch.full((FEATURES,), 0.02)
    scale[:4] = 0.3
    shift = torch.zeros(FEATURES)
    shift[10] = 0.35
    planted = spread(shift, share=0.1, scale=scale)
    sifter = SPECTRE(dimensions=(2, 8))
    found = sifter.score(planted.data, runtime(), reader())
    assert auroc(found.scores, planted.planted) > 0.95
    assert auroc(SpectralSignatures().score(planted.data, runtime(), reader()).scores, planted.planted) < 0.8
    before = sifter.score(planted.without, runtime(), reader())
    assert auroc(before.scores, planted.planted) < 0.7
    assert int(found.poisoned.sum()) == 5 * 18


def test_a_class_of_few_rows_is_left_alone() -> None:
    planted = spread(torch.zeros(FEATURES), count=35)
    found = SPECTRE().score(planted.data, runtime(), reader())
    assert found.scores.tolist() == [0.0] * 35
    assert not bool(found.poisoned.any())


@pytest.mark.parametrize("options", [{"dimensions": ()}, {"dimensions": (0,)}, {"alpha": -1.0}, {"expected": 0.7}])
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="SPECTRE: "):
        SPECTRE(**options)  # type: ignore[arg-type]
