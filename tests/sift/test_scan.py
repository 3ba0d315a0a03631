"""SCAn: whitening and gain against plain versions, the class that is two, and which of its groups is the poison."""

from __future__ import annotations

import math

import pytest
import torch

from tests.sift.spread import FEATURES, TARGET, auroc, away, reader, runtime, spread
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import SCAn
from unbackdoor.sift.scan import two_groups, whiten


def test_whitened_features_have_the_identity_as_their_covariance_within_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double()
    parts = [torch.arange(0, 100), torch.arange(100, 300)]
    features[100:] += 7
    points = whiten(features, parts)
    inner = torch.cat([points[rows] - points[rows].mean(0) for rows in parts])
    torch.testing.assert_close(inner.T @ inner / 298, torch.eye(4).double(), atol=1e-9, rtol=0)


def test_directions_without_variance_are_left_out() -> None:
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    features[:, 3] = 1.0
    assert whiten(features, [torch.arange(50)]).shape == (50, 3)


def test_two_groups_explain_what_the_formula_says() -> None:
    points = torch.tensor([[-1.0], [-1.2], [-0.8], [4.0]]).double()
    groups = two_groups(points, 0)
    assert groups.second.tolist() == [False, False, False, True]
    mean = points.mean()
    total = float((points - mean).square().sum())
    within = 0.04 + 0.04
    assert groups.gain == pytest.approx((total - within) / 4)
    odds = math.log(1 / 3) + ((4.0 + 1.0) ** 2) / 2
    assert float(groups.posterior[3]) == pytest.approx(1 / (1 + math.exp(-odds)), rel=1e-4)


def test_rows_that_are_all_alike_are_one_group() -> None:
    groups = two_groups(torch.ones(6, 2).double(), 0)
    assert groups.gain == 0.0
    assert not bool(groups.second.any())


def test_the_class_that_is_two_is_found_with_its_smaller_group() -> None:
    planted = spread(0.8 * away(), share=0.2, count=1500)
    found = SCAn().score(planted.data, runtime(), reader())
    assert found.evidence["anomalies"][str(TARGET)] > math.e**2
    assert float((found.poisoned == planted.planted).float().mean()) > 0.99
    assert auroc(found.scores, planted.planted) > 0.99


def test_the_same_rows_before_are_all_held_clean() -> None:
    found = SCAn().score(spread(0.8 * away(), count=1500).without, runtime(), reader())
    assert not bool(found.poisoned.any())


def test_clean_samples_tell_which_group_is_the_poison_where_it_is_the_larger() -> None:
    planted, other = spread(0.8 * away(), share=0.7, count=1500), spread(torch.zeros(FEATURES), seed=3)
    alone = SCAn().score(planted.data, runtime(), reader())
    assert auroc(alone.scores, planted.planted) < 0.9
    helped = SCAn().score(DefenderData(untrusted=planted.rows, clean=other.plain), runtime(), reader())
    assert float((helped.poisoned == planted.planted).float().mean()) > 0.99


def test_two_classes_cannot_be_compared_which_is_said_before_a_model_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SCAn, "learn", lambda *given: pytest.fail("a model is trained in vain"))
    planted = spread(torch.zeros(FEATURES))
    few = DefenderData(untrusted=planted.plain.subset((planted.plain.labels < 2).nonzero().squeeze(1)))
    with pytest.raises(InputError, match="needs at least 3"):
        SCAn().score(few, runtime())


def test_a_threshold_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="SCAn: the threshold"):
        SCAn(threshold=0.0)
