"""Order statistics in passes are those of the sorted scores, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from unbackdoor.sift.sharded.ranks import at_ranks, chance_of, keys_of, ordered, scores_of

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, st.integers(1, 300), elements=FINITE), st.integers(1, 7))
def test_every_rank_is_that_of_the_sorted_scores(scores: np.ndarray, parts: int) -> None:
    keys = keys_of(scores, chance_of("a", 0))
    found = at_ranks(range(len(scores)), lambda: np.array_split(keys, parts))
    assert [one.key for one in found] == np.sort(keys).tolist()
    assert [one.score for one in found] == np.sort(scores).tolist()
    assert [one.ties for one in found] == [int((scores == one.score).sum()) for one in found]


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
    parts = np.array_split(keys_of(chance.permutation(scores), chance_of("a", 0)), 13)
    assert [one.score for one in at_ranks(ranks, lambda: parts)] == wanted
    assert at_ranks(ranks, lambda: parts[::-1]) == at_ranks(ranks, lambda: parts)


def test_lots_differ_between_rows_files_and_seeds_and_are_the_same_in_parts() -> None:
    scores = np.zeros(1000, np.float32)
    keys = keys_of(scores, chance_of("a", 0))
    chance = chance_of("a", 0)
    assert np.array_equal(np.concatenate([keys_of(scores[:300], chance), keys_of(scores[300:], chance)]), keys)
    others = [keys_of(scores, chance_of("b", 0)), keys_of(scores, chance_of("a", 1))]
    assert len({*keys.tolist(), *others[0].tolist(), *others[1].tolist()}) == 3000
    assert np.unique(keys >> np.uint64(32)).tolist() == [2**31], "they lie below the bits of the score"


@given(arrays(np.float32, 2, elements=FINITE))
def test_whole_numbers_are_in_the_order_of_the_scores_and_lead_back_to_them(pair: np.ndarray) -> None:
    left, right = ordered(pair)
    assert (left < right, left == right) == (pair[0] < pair[1], pair[0] == pair[1])
    assert np.array_equal(scores_of(ordered(pair)), pair)
