"""Consensus holds a group poisoned only where movement, loss and distance agree."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import norm

from tests.sift.spread import CLASSES, FEATURES, TARGET, auroc, centres, reader, runtime, spread
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import Consensus
from unbackdoor.sift.consensus import normal_scores, parted

FAINT = 0.2 * centres()
"""Weights with which losses are not all 0."""


def test_normal_scores_are_quantiles_of_ranks_and_equal_values_share_theirs() -> None:
    found = normal_scores(torch.tensor([5.0, -1.0, 5.0, 100.0]))
    assert found.tolist() == pytest.approx(norm.ppf([2 / 4, 0.5 / 4, 2 / 4, 3.5 / 4]).tolist(), abs=1e-6)
    assert normal_scores(torch.ones(5)).tolist() == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_group_that_lies_apart_moves_more_and_was_learned_earlier_is_held_poisoned(share: float) -> None:
    planted = spread(1.8 * centres()[TARGET], share=share, count=1500)
    found = Consensus().score(planted.data, runtime(), reader(FAINT))
    assert float((found.poisoned == planted.planted).float().mean()) > 0.99
    assert auroc(found.scores, planted.planted) > 0.99
    assert not bool((found.clean & planted.planted).any())


def test_the_same_rows_before_have_no_such_group() -> None:
    planted = spread(1.8 * centres()[TARGET], count=1500)
    found = Consensus().score(planted.without, runtime(), reader(FAINT))
    assert not bool(found.poisoned.any())
    assert found.summary.startswith("0 of 20 groups")


def test_a_group_that_lies_apart_with_large_losses_is_not() -> None:
    """Rows shifted against their own class: apart, and moving, but hard to learn."""
    planted = spread(-1.8 * centres()[TARGET], share=0.2, count=1500)
    found = Consensus().score(planted.data, runtime(), reader(FAINT))
    hard = [one for one in found.evidence["groups"] if one["class"] == TARGET and one["loss"] < -1]
    assert sum(one["rows"] for one in hard) == 60
    assert min(one["apart"] for one in hard) > 3
    assert not bool(found.poisoned.any())


def test_rows_that_are_all_alike_are_one_group_and_groups_have_rows_enough() -> None:
    assert [part.tolist() for part in parted(torch.ones(20, 3).double(), 4, 0)] == [list(range(20))]
    points = torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    assert len(parted(points, 4, 0)) == 2
    assert sorted(torch.cat(parted(points, 4, 0)).tolist()) == list(range(9))


def test_reasons_name_the_three_things() -> None:
    planted = spread(torch.zeros(FEATURES), count=100)
    found = Consensus(draws=1).score(planted.data, runtime(), reader(FAINT))
    assert all("movement" in reason and "loss" in reason and "apart" in reason for reason in found.reasons)


@pytest.mark.parametrize("classes", [0, 1, 2])
def test_fewer_than_three_classes_with_rows_enough_are_refused_before_a_model_is_trained(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Consensus, "learn", lambda *given: pytest.fail("a model is trained in vain"))
    rows = spread(torch.zeros(FEATURES), count=100).data.need_untrusted("Test")
    kept = torch.cat([(rows.labels == c).nonzero().squeeze(1)[: 20 if c < classes else 3] for c in range(CLASSES)])
    with pytest.raises(InputError, match=f"at least 3 with 4 rows or more, found {classes}"):
        Consensus(draws=1).score(DefenderData(untrusted=rows.subset(kept)), runtime())


def test_a_class_with_hardly_any_rows_is_ranked_and_not_judged() -> None:
    rows = spread(torch.zeros(FEATURES), count=100).data.need_untrusted("Test")
    kept = torch.cat([(rows.labels == c).nonzero().squeeze(1)[: 3 if c == 0 else 20] for c in range(CLASSES)])
    few = rows.subset(kept)
    found = Consensus(draws=1).score(DefenderData(untrusted=few), runtime(), reader(FAINT))
    told = [reason == "too few rows in its class to compare" for reason in found.reasons]
    assert told == (few.labels == 0).tolist()
    assert not bool(found.poisoned[few.labels == 0].any())


@pytest.mark.parametrize("options", [{"evidence": float("nan")}, {"apart": 0.0}, {"groups": 1}, {"draws": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Consensus: "):
        Consensus(**options)  # type: ignore[arg-type]


def test_rows_whose_features_do_not_vary_are_one_group() -> None:
    (part,) = parted(torch.zeros(9, 0), 4, 0)
    assert part.tolist() == list(range(9))
