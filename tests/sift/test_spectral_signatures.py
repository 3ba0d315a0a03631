"""Spectral Signatures: the projection against a plain singular value decomposition, and what it finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sift.spread import TARGET, auroc, away, reader, runtime, spread
from unbackdoor.errors import InputError
from unbackdoor.sift import SpectralSignatures
from unbackdoor.sift.spectral_signatures import outlyingness


def test_scores_are_squared_projections_on_the_first_singular_vector() -> None:
    features = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    centred = (features - features.mean(0)).numpy().astype(np.float64)
    direction = np.linalg.svd(centred)[2][0]
    expected = [float(row @ direction) ** 2 for row in centred]
    assert outlyingness(features).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_planted_rows_have_the_largest_scores_and_each_class_loses_its_share() -> None:
    planted = spread(0.8 * away(), share=0.1)
    found = SpectralSignatures().score(planted.data, runtime(), reader())
    assert bool(found.poisoned[planted.planted].all())
    labels = planted.rows.labels
    assert [int(found.poisoned[labels == c].sum()) for c in range(5)] == [18] * 5
    assert auroc(found.scores, planted.planted) > 0.99


def test_without_planted_rows_the_class_is_like_the_others() -> None:
    """The scores say which class was poisoned; those of the same rows before it do not."""
    planted = spread(0.8 * away(), share=0.1)
    largest = []
    for data in (planted.data, planted.without):
        scores = SpectralSignatures().score(data, runtime(), reader()).scores
        largest.append(torch.stack([scores[planted.rows.labels == c].max() for c in range(5)]))
    assert int(largest[0].argmax()) == TARGET
    others = largest[0][torch.arange(5) != TARGET]
    assert float(largest[0][TARGET]) > 3 * float(others.max())
    assert float(largest[1].max()) < 2 * float(others.max())


def test_more_than_everything_cannot_be_removed() -> None:
    with pytest.raises(InputError, match=r"removed must be a share above 0 and below 1, found 1\.0"):
        SpectralSignatures(expected=0.7)
