"""Order statistics in two passes are those of the sorted scores, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unbackdoor.sift.sharded.ranks import ordered, scores_of, values_at

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.integers(1, 300), elements=FINITE), st.integers(1, 7))
def test_every_rank_is_that_of_the_sorted_scores(scores: np.ndarray, parts: int) -> None:
    found = values_at(range(len(scores)), lambda: np.array_split(scores, parts))
    assert found == np.sort(scores).tolist()


def test_ranks_of_many_scores_are_exact_in_any_order_of_the_files() -> None:
    chance = np.random.default_rng(0)
    spread = [
        chance.normal(0, 1, 50_000),
        -chance.exponential(1e-3, 30_000),
        np.zeros(500),
        chance.lognormal(9, 4, 999),
    ]
    scores = np.concatenate(spread).astype(np.float32)
    ranks = [0, 1, 8149, 40_000, 80_424, 81_498]
    wanted = np.sort(scores)[ranks].tolist()
    parts = np.array_split(chance.permutation(scores), 13)
    assert values_at(ranks, lambda: parts) == wanted
    assert values_at(ranks, lambda: parts[::-1]) == wanted


@given(arrays(np.float32, 2, elements=FINITE))
def test_whole_numbers_are_in_the_order_of_the_scores_and_lead_back_to_them(pair: np.ndarray) -> None:
    left, right = ordered(pair)
    assert (left < right, left == right) == (pair[0] < pair[1], pair[0] == pair[1])
    assert np.array_equal(scores_of(ordered(pair)), pair)
