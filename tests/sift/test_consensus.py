"""Consensus holds a part of a class poisoned only where movement, loss and distance agree."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from tests.sift.spread import CLASSES, FEATURES, TARGET, auroc, centres, reader, runtime, spread
from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.sift import Consensus
from unbackdoor.sift.consensus import BELL, Part, cut, normal_scores

FAINT = 0.2 * centres()
"""Weights with which losses are not all 0."""


def test_normal_scores_are_quantiles_of_ranks_and_equal_values_share_theirs() -> None:
    found = normal_scores(torch.tensor([5.0, -1.0, 5.0, 100.0]))
    assert found.tolist() == pytest.approx(norm.ppf([2 / 4, 0.5 / 4, 2 / 4, 3.5 / 4]).tolist(), abs=1e-6)
    assert normal_scores(torch.ones(5)).tolist() == pytest.approx([0.0] * 5)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_part_that_lies_apart_moves_more_and_was_learned_earlier_is_held_poisoned(share: float) -> None:
    planted = spread(1.8 * centres()[TARGET], share=share, count=1500)
    found = Consensus().score(planted.data, runtime(), reader(FAINT))
    assert float((found.poisoned == planted.planted).float().mean()) > 0.99
    assert auroc(found.scores, planted.planted) > 0.99
    assert not bool((found.clean & planted.planted).any())


def test_the_same_rows_before_have_no_such_part() -> None:
    planted = spread(1.8 * centres()[TARGET], count=1500)
    found = Consensus().score(planted.without, runtime(), reader(FAINT))
    assert not bool(found.poisoned.any())
    assert found.summary.startswith("0 of 10 parts")


def test_a_part_that_lies_apart_with_large_losses_is_not() -> None:
    """Rows shifted against their own class: apart, and moving, but hard to learn."""
    planted = spread(-1.8 * centres()[TARGET], share=0.2, count=1500)
    found = Consensus().score(planted.data, runtime(), reader(FAINT))
    hard = [one for one in found.evidence["parts"] if one["class"] == TARGET and one["loss"] < -1]
    assert sum(one["rows"] for one in hard) == 60
    assert min(one["apart"] for one in hard) > 3
    assert not bool(found.poisoned.any())


def test_where_one_kind_of_evidence_speaks_for_either_part_distance_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in an all-to-all attack, with the kinds the other way round: learned early, but hardly moving."""
    planted = spread(1.8 * centres()[TARGET], share=0.5, count=1500)
    rows = planted.data.need_untrusted("Test")
    still = planted.planted[rows.canonical_order()].float()
    monkeypatch.setattr("unbackdoor.sift.consensus.FCT.measure", lambda *_: (1 - still, {}))
    found = Consensus(threshold=0.5).score(planted.data, runtime(), reader(FAINT))
    both = [one for one in found.evidence["parts"] if one["class"] == TARGET]
    assert len(both) == 2
    for part in both:
        assert part["apart"] > 2 * BELL
        assert not part["ahead"]
        assert part["suspicion"] == pytest.approx((part["movement"] + part["loss"]) / 2, abs=1e-3)


def test_a_class_whose_rows_are_all_alike_is_one_part() -> None:
    rows = spread(torch.zeros(FEATURES), count=100).data.need_untrusted("Test")
    (first, *_) = members = (rows.labels == 0).nonzero().squeeze(1)
    taken = torch.arange(len(rows)).where(rows.labels != 0, first)
    alike = DefenderData(untrusted=replace(rows, images=rows.images[taken]))
    found = Consensus(draws=1).score(alike, runtime(), reader(FAINT))
    (part,) = [one for one in found.evidence["parts"] if one["class"] == 0]
    assert part["rows"] == len(members)
    assert not part["poisoned"]


def test_suspicion_grows_with_the_distance_where_evidence_speaks_for_poison_alone() -> None:
    near, far = (partial(Part, label=0, members=torch.arange(3), apart=apart, ahead=True) for apart in (2.0, 2 * BELL))
    assert near(movement=1.0, loss=0.6).suspicion == pytest.approx(0.8)
    assert far(movement=1.0, loss=0.6).suspicion == pytest.approx(3.2)
    assert far(movement=-1.0, loss=-0.6).suspicion == pytest.approx(-0.8)
    assert far(movement=1.0, loss=0.6, ahead=False).suspicion == pytest.approx(0.8)
    assert far(movement=1.0, loss=0.6).accused(3.1)
    assert not far(movement=1.0, loss=0.6).accused(3.3)
    assert not far(movement=1.7, loss=-0.1).accused(3.1)


def test_reasons_name_the_three_things() -> None:
    planted = spread(torch.zeros(FEATURES), count=100)
    found = Consensus(draws=1).score(planted.data, runtime(), reader(FAINT))
    assert all("movement" in reason and "loss" in reason and "apart" in reason for reason in found.reasons)


@pytest.mark.parametrize("directions", [2, 40])
def test_a_bell_curve_lies_as_far_apart_as_its_two_halves_do_however_wide_and_however_few_its_points(
    directions: int,
) -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.tensor([9.0, *[1.0] * (directions - 1)]).double()
    points = torch.randn(4000, directions, generator=generator).double() * wide
    # What the halves of a normal distribution have: means at sqrt(2 / pi), standard deviations sqrt(1 - 2 / pi).
    assert pytest.approx(2 * math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)) == BELL
    assert cut(points, 0)[1] == pytest.approx(BELL, rel=0.05)
    few = [cut(torch.randn(100, directions, generator=generator).double(), 0)[1] for _ in range(10)]
    assert max(few) < 4.0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_two_bell_curves_lie_as_far_apart_as_they_were_put(share: float) -> None:
    points = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0)).double()
    moved = torch.rand(2000, generator=torch.Generator().manual_seed(1)) < share
    points[moved, 0] += 8.0
    second, apart = cut(points, 0)
    assert apart == pytest.approx(8.0, rel=0.05)
    assert float((second == (moved if bool(second[moved].any()) else ~moved)).float().mean()) > 0.999


@pytest.mark.parametrize(
    "points",
    [torch.zeros(9, 0), torch.ones(20, 3), torch.zeros(3, 2), torch.eye(5)],
    ids=["no directions", "all alike", "few", "one by one"],
)
def test_points_that_do_not_fall_into_two_parts_are_one(points: Tensor) -> None:
    second, apart = cut(points.double(), 0)
    assert not bool(second.any())
    assert apart == 0.0


def test_parts_that_are_points_lie_apart() -> None:
    points = torch.zeros(40, 2).double()
    points[torch.randperm(40, generator=torch.Generator().manual_seed(0))[:20], 0] = 1.0
    assert cut(points, 0)[1] == pytest.approx(1e6)


def test_poison_is_found_beside_one_other_class_alone() -> None:
    planted = spread(1.8 * centres()[TARGET], share=0.5, count=1500)
    rows = planted.data.need_untrusted("Test")
    kept = ((rows.labels == TARGET) | (rows.labels == 0)).nonzero().squeeze(1)
    found = Consensus().score(DefenderData(untrusted=rows.subset(kept)), runtime(), reader(FAINT))
    assert float((found.poisoned == planted.planted[kept]).float().mean()) > 0.95


def test_a_class_with_hardly_any_rows_is_ranked_and_not_judged() -> None:
    rows = spread(torch.zeros(FEATURES), count=100).data.need_untrusted("Test")
    kept = torch.cat([(rows.labels == c).nonzero().squeeze(1)[: 3 if c == 0 else 20] for c in range(CLASSES)])
    few = rows.subset(kept)
    found = Consensus(draws=1).score(DefenderData(untrusted=few), runtime(), reader(FAINT))
    told = [reason == "too few rows in its class to compare" for reason in found.reasons]
    assert told == (few.labels == 0).tolist()
    assert not bool(found.poisoned[few.labels == 0].any())


@pytest.mark.parametrize("options", [{"threshold": float("nan")}, {"threshold": 0.0}, {"draws": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Consensus: "):
        Consensus(**options)  # type: ignore[arg-type]
