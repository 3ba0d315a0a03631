"""P-values are ranks among clean images, and what chance explains is what a simulation finds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unbackdoor.errors import InputError
from unbackdoor.sift.filtered import compared_with_clean


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 6).map(float), min_size=19, max_size=40),
    st.lists(st.integers(0, 6).map(float), min_size=1, max_size=20),
    st.sampled_from([0.05, 0.1, 0.5]),
)
def test_p_values_are_ranks_among_the_clean_ones_ties_included(
    clean: list[float], scores: list[float], rate: float
) -> None:
    found = compared_with_clean(torch.tensor(scores), torch.tensor(clean), rate)
    plain = [(1 + sum(one >= score for one in clean)) / (1 + len(clean)) for score in scores]
    assert found.p_values.tolist() == pytest.approx(plain)
    assert found.triggered.tolist() == [p_value <= rate + 1e-12 for p_value in plain]


def test_chance_is_that_of_clean_images_drawn_again_and_again() -> None:
    """The distribution of what is held, over draws of the clean images too, and not for one threshold that is known."""
    draws = torch.Generator().manual_seed(0)
    found = [
        compared_with_clean(torch.randn(50, generator=draws), torch.randn(39, generator=draws), 0.05)
        for _ in range(4000)
    ]
    held = torch.tensor([int(one.triggered.sum()) for one in found])
    chance = {int(one.triggered.sum()): one.by_chance for one in found}
    for count in (1, 3, 6, 10):
        share = float((held >= count).float().mean())
        assert chance[count] == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5 + 0.002)
    # So clean images are called triggered once in a hundred times at most.
    assert float(torch.tensor([one.verdict is True for one in found]).float().mean()) < 0.016


def test_triggered_ones_are_more_than_chance_explains() -> None:
    draws = torch.Generator().manual_seed(1)
    scores = torch.randn(100, generator=draws)
    scores[:15] += 6
    found = compared_with_clean(scores, torch.randn(200, generator=draws), 0.05)
    assert bool(found.triggered[:15].all())
    assert found.verdict is True


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="above 0 and below 1"):
        compared_with_clean(torch.zeros(1), torch.zeros(50), rate)


def test_too_few_clean_images_are_refused() -> None:
    with pytest.raises(InputError, match=r"18 clean images allow a share of false alarms of 0\.0526 or more"):
        compared_with_clean(torch.zeros(1), torch.zeros(18), 0.05)
    assert compared_with_clean(torch.ones(1), torch.zeros(19), 0.05).triggered.tolist() == [True]


def test_where_too_many_clean_images_have_the_highest_score_nothing_can_be_told() -> None:
    clean = torch.tensor([0.0] * 90 + [1.0] * 10)
    blind, finer = (compared_with_clean(torch.ones(30), clean, rate, 1.0) for rate in (0.05, 0.2))
    assert (blind.too_coarse, blind.verdict, int(blind.triggered.sum())) == (True, None, 0)
    assert (finer.too_coarse, finer.verdict, int(finer.triggered.sum())) == (False, True, 30)
    # Where there are higher scores, those that are no higher tell that nothing was found.
    assert compared_with_clean(torch.ones(30), clean, 0.05).verdict is False
    assert compared_with_clean(torch.full((30,), 2.0), clean, 0.05).verdict is True
