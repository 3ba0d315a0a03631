"""Activation Clustering finds the small cluster of a class, and says nothing where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sift.spread import TARGET, auroc, away, reader, runtime, spread
from unbackdoor.errors import InputError
from unbackdoor.sift import ActivationClustering
from unbackdoor.sift.activation_clustering import drawn, two_clusters


def test_a_small_cluster_apart_is_held_poisoned_and_nothing_else() -> None:
    planted = spread(1.5 * away(), share=0.2)
    found = ActivationClustering(dimensions=2).score(planted.data, runtime(), reader())
    assert torch.equal(found.poisoned, planted.planted)
    assert torch.equal(found.clean, ~planted.planted)
    assert auroc(found.scores, planted.planted) > 0.99
    assert found.evidence["clusters"][str(TARGET)]["smaller"] == pytest.approx(0.2, abs=0.01)


def test_the_same_rows_without_a_cluster_are_all_held_clean() -> None:
    found = ActivationClustering(dimensions=2).score(spread(1.5 * away()).without, runtime(), reader())
    assert int(found.poisoned.sum()) == 0
    assert found.summary.startswith("0 of 5 classes")


def test_a_cluster_of_half_the_class_is_not_accused() -> None:
    planted = spread(1.5 * away(), share=0.45)
    found = ActivationClustering(dimensions=2).score(planted.data, runtime(), reader())
    assert int(found.poisoned.sum()) == 0
    assert (
        int(ActivationClustering(dimensions=2, largest=0.5).score(planted.data, runtime(), reader()).poisoned.sum()) > 0
    )


def test_the_margin_is_one_in_the_middle_of_the_smaller_cluster_and_minus_one_in_that_of_the_larger() -> None:
    line = torch.cat([torch.full((3, 1), 5.0), torch.full((9, 1), -1.0)]) + 1e-3 * torch.arange(12.0)[:, None]
    clusters = two_clusters(line, 10, 0)
    assert clusters is not None
    assert clusters.smaller.tolist() == [True] * 3 + [False] * 9
    torch.testing.assert_close(clusters.margin[:3], torch.ones(3), atol=0.01, rtol=0)
    torch.testing.assert_close(clusters.margin[3:], -torch.ones(9), atol=0.01, rtol=0)
    assert clusters.silhouette > 0.99


def test_rows_that_are_all_alike_have_no_clusters() -> None:
    assert two_clusters(torch.ones(20, 4), 10, 0) is None
    assert two_clusters(torch.rand(2, 4), 10, 0) is None


def test_the_rows_that_the_silhouette_is_computed_from_are_of_both_clusters() -> None:
    """A cluster of one row among thousands is hardly ever met by rows at random."""
    clusters = np.zeros(5000, dtype=int)
    clusters[77] = 1
    for seed in range(10):
        some = drawn(clusters, seed)
        assert sum(clusters[some]) == 1
        assert 1990 < len(some) <= 2001
        assert len(set(some.tolist())) == len(some)
    assert sorted(drawn(clusters[:100], 0).tolist()) == list(range(100))


@pytest.mark.parametrize("options", [{"dimensions": 0}, {"silhouette": 2.0}, {"largest": 0.6}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="ActivationClustering: "):
        ActivationClustering(**options)  # type: ignore[arg-type]
