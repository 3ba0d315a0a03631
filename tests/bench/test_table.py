"""Means and intervals against slow, plain references, and where the answer is known."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.bench.records import record, repaired, trained
from unbackdoor.bench.standings import ranking
from unbackdoor.bench.store import Record
from unbackdoor.bench.table import BLOCK, block_means, cell_table, rank_intervals, seed_interval, trials

MANY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)

eighths = st.integers(0, 8).map(lambda number: number / 8)
"""Sums of these are exact, so that ties are ties."""


def test_a_table_has_one_row_a_cell_with_all_that_is_known_of_it() -> None:
    table = cell_table(
        [trained(seed=3, commit="abc"), repaired("FT", 0.75, error="", device="cuda (b)", version="0.2.0", budget=5.0)]
    )
    assert table["kind"].tolist() == ["victim", "purify"]
    assert table["seed"].tolist() == [3, 0]
    assert table["der"].tolist()[1] == 0.75
    assert pd.isna(table["der"][0])
    assert pd.isna(table["method"][0])
    assert table["device"].tolist() == ["cpu (a)", "cuda (b)"]
    assert table["unbackdoor"].tolist() == ["0.1.0", "0.2.0"]
    assert table["commit"].tolist() == ["abc", ""]
    assert table["duration"].tolist() == [30, 30]
    assert set(BLOCK) <= set(table.columns)
    assert cell_table([]).empty


PLACES = list(
    itertools.product(("FT", "SAU"), ("BadNets", "None"), (0.1, 0.05, None), (50, 100), (None, 5.0), (0, 1, 2))
)


@st.composite
def repairs(draw: st.DrawFn) -> list[Record]:
    """Return repairs by two methods in several blocks and seeds, some of which were measured without DER."""
    found = []
    for method, attack, rate, size, budget, seed in draw(st.lists(st.sampled_from(PLACES), unique=True, max_size=12)):
        der = draw(eighths | st.none())
        labels = {"attack": attack, "poison_rate": rate, "clean_size": size, "budget": budget, "seed": seed}
        if der is None:
            found.append(record("purify", {"acc": 0.9}, method=method, **labels))
        else:
            found.append(repaired(method, der, **labels))
    return found


def plain_means(records: list[Record], methods: list[str]) -> list[list[float | None]]:
    """Return the mean of each method in each block, the blocks in any order, computed with nothing but dicts."""
    blocks: dict[tuple[Any, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in records:
        if "der" in one.metrics:
            blocks[tuple(one.labels[name] for name in BLOCK)][str(one.labels["method"])].append(one.metrics["der"])
    return [
        [sum(block[method]) / len(block[method]) if method in block else None for method in methods]
        for block in blocks.values()
    ]


def in_order(rows: list[list[float | None]]) -> list[list[float]]:
    return sorted([-1 if value is None else round(value, 9) for value in row] for row in rows)


@MANY
@given(repairs())
def test_means_over_seeds_are_those_of_a_plain_loop(records: list[Record]) -> None:
    assume(any("der" in one.metrics for one in records))
    tried = trials(cell_table(records))
    rows = [[None if np.isnan(value) else value for value in row] for row in block_means(tried.values["der"]).T]
    assert len(tried.blocks) == len(rows)
    assert in_order(rows) == in_order(plain_means(records, list(tried.methods)))


def test_a_block_is_all_but_the_seed_and_the_method() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"data": "cifar10"},
        {"network": "VGG19BN"},
        {"attack": "SIG"},
        {"poison_rate": 0.05},
        {"training": "epochs=3"},
        {"precision": "fp32"},
        {"clean_size": 100},
        {"budget": 5.0},
    ]
    records = [repaired(method, 0.5, seed=seed, **change) for change in changes for method in "AB" for seed in (0, 1)]
    tried = trials(cell_table(records))
    assert tried.values["der"].shape == (2, len(changes), 2)
    assert bool((tried.values["der"] == 0.5).all())
    assert len(tried.blocks.drop_duplicates()) == len(changes)


def test_a_missing_label_is_a_value_of_its_own() -> None:
    """No budget and no poison rate are what most grids have."""
    records = [repaired("A", 0.25, budget=None), repaired("A", 0.75, budget=5.0)]
    assert sorted(trials(cell_table(records)).values["der"].flatten()) == [0.25, 0.75]
    assert trials(cell_table(records[:1])).values["der"].tolist() == [[[0.25]]]


@MANY
@given(st.lists(st.lists(st.floats(0, 1) | st.none(), min_size=3, max_size=3), min_size=2, max_size=6))
def test_the_interval_over_seeds_is_that_of_the_t_test_if_they_have_the_same_blocks(
    by_seed: list[list[float | None]],
) -> None:
    blocks = [block for block in range(3) if any(values[block] is not None for values in by_seed)]
    kept = [[values[block] for block in blocks] for values in by_seed]
    kept = [values for values in kept if values != [None] * len(values)]
    means = [sum(v for v in values if v is not None) / len(values) for values in kept]
    found = seed_interval(np.array(by_seed, dtype=float).T)
    if len(means) < 2 or any(None in values for values in kept):
        assert found == (None, None)
        return
    assume(np.std(means) > 1e-6)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert found == pytest.approx((max(0, expected.low), min(1, expected.high)))


def test_a_single_seed_has_no_interval_and_equal_seeds_one_without_width() -> None:
    assert seed_interval(np.array([[0.2], [0.8]])) == (None, None)
    assert seed_interval(np.full((1, 3), 0.5)) == (0.5, 0.5)
    assert seed_interval(np.empty((0, 3))) == (None, None)


def plain_ranks(totals: list[float]) -> list[float]:
    """Return each place's rank: one more than there are better ones, and half a place for each equal one."""
    return [
        1 + sum(other > mine for other in totals) + (sum(other == mine for other in totals) - 1) / 2 for mine in totals
    ]


def exact_interval(der: np.ndarray, method: int) -> tuple[float, float]:
    """Return the ends of the rank's bootstrap interval from all samples that can be drawn, each as likely."""
    samples = itertools.product(range(len(der)), repeat=len(der))
    drawn = sorted(
        plain_ranks([sum(der[row, m] for row in rows) for m in range(der.shape[1])])[method] for rows in samples
    )
    shares = {rank: sum(other <= rank for other in drawn) / len(drawn) for rank in drawn}
    # So near an end of the interval, a thousand draws can fall on either side.
    assume(all(abs(share - end) > 0.02 for share in shares.values() for end in (0.025, 0.975)))
    low = min(rank for rank, share in shares.items() if share >= 0.025)
    high = min(rank for rank, share in shares.items() if share >= 0.975)
    return low, high


@MANY
@given(st.sampled_from([2, 4]), st.integers(1, 4), st.data())
def test_rank_intervals_are_those_of_all_samples_that_can_be_drawn(
    blocks: int, methods: int, data: st.DataObject
) -> None:
    values = data.draw(st.lists(eighths, min_size=blocks * methods, max_size=blocks * methods))
    der = np.array(values).reshape(blocks, methods)
    expected = [exact_interval(der, method) for method in range(methods)]
    found = rank_intervals(der)
    assert found[:, 0].tolist() == plain_ranks(der.sum(0).tolist())
    assert [tuple(row) for row in found[:, 1:].tolist()] == expected


def test_a_method_that_is_best_everywhere_is_first_for_sure() -> None:
    der = np.array([[0.9, 0.5, 0.6], [0.8, 0.7, 0.1], [0.7, 0.2, 0.3], [0.95, 0.9, 0.94]])
    found = rank_intervals(der)
    assert found[0].tolist() == [1, 1, 1]
    assert found[1:, 1].min() == 2
    assert found[1:, 2].max() == 3


def test_methods_of_which_each_wins_somewhere_may_swap_ranks() -> None:
    der = np.array([[0.9, 0.5], [0.5, 0.85]] * 3)
    assert rank_intervals(der).tolist() == [[1, 1, 2], [2, 1, 2]]
    assert rank_intervals(der[:, ::-1]).tolist() == [[2, 1, 2], [1, 1, 2]]


def test_equal_methods_share_a_rank() -> None:
    assert rank_intervals(np.full((3, 3), 0.5)).tolist() == [[2, 2, 2]] * 3


def test_one_block_gives_ranks_without_intervals() -> None:
    found = rank_intervals(np.array([[0.5, 0.9, 0.7]]))
    assert found[:, 0].tolist() == [3, 1, 2]
    assert np.isnan(found[:, 1:]).all()


def test_no_method_has_no_ranks() -> None:
    for blocks in (1, 3):
        assert rank_intervals(np.empty((blocks, 0))).shape == (0, 3)


def test_the_draws_depend_on_the_seed_alone() -> None:
    der = np.random.default_rng(5).random((6, 5))
    assert np.array_equal(rank_intervals(der), rank_intervals(der.copy()))
    order = [3, 1, 4, 0, 2]
    assert np.array_equal(rank_intervals(der)[order], rank_intervals(der[:, order]))


def ranked(records: list[Record]) -> dict[str, tuple[float | None, float | None, float | None] | None]:
    return {
        row.method: None if row.rank is None else (row.rank.value, row.rank.low, row.rank.high)
        for row in ranking(trials(cell_table(records)))
    }


def test_a_method_that_lacks_most_blocks_is_not_ranked_and_the_others_are() -> None:
    records = [repaired(method, der, data=data) for data in "abc" for method, der in (("A", 0.6), ("B", 0.8))]
    records.append(repaired("C", 0.99, data="a"))
    assert ranked(records) == {"B": (1, 1, 1), "A": (2, 2, 2), "C": None}
    assert list(ranked(records)) == ["B", "A", "C"], "the unranked come last, whatever they reached"


def test_methods_are_ranked_on_the_blocks_and_seeds_that_all_of_them_have() -> None:
    """B would be last by what it alone has, and A first by that."""
    both = [repaired(method, der, seed=seed) for seed in (0, 1) for method, der in (("A", 0.6), ("B", 0.8))]
    more = [repaired("A", 1.0, data="b"), repaired("A", 1.0, seed=2), repaired("B", 0.0, data="c")]
    assert ranked([*both, *more]) == {"B": (1, None, None), "A": (2, None, None)}
    rows = {row.method: row for row in ranking(trials(cell_table([*both, *more])))}
    assert [rows[method].der and rows[method].der.value for method in "AB"] == pytest.approx([0.6, 0.8])
    assert [rows[method].blocks for method in "AB"] == [1, 1]


def test_a_method_is_not_first_because_it_alone_has_a_block_more() -> None:
    records = [repaired(method, der, data=data) for data in "ab" for method, der in (("A", 0.6), ("B", 0.8))]
    assert ranked([*records, repaired("A", 0.1, data="c")]) == {"B": (1, 1, 1), "A": (2, 2, 2)}


def test_a_method_of_which_alone_there_is_enough_has_no_rank() -> None:
    records = [repaired("A", 0.6, data=data) for data in "abc"]
    assert ranked([*records, repaired("B", 0.8, data="a")]) == {"A": None, "B": None}
    assert ranked(records) == {"A": (1, 1, 1)}


def test_of_cells_with_the_same_labels_the_newest_counts() -> None:
    """The store gives the newest first."""
    newer, older = repaired("A", 0.9), repaired("A", 0.2)
    (row,) = ranking(trials(cell_table([newer, replace(older, key="other")])))
    assert row.der is not None
    assert row.der.value == 0.9


def test_where_every_method_lacks_a_block_none_is_ranked() -> None:
    assert ranked([repaired("A", 0.5, data="a"), repaired("B", 0.6, data="b")]) == {"A": None, "B": None}


def test_ranks_do_not_depend_on_the_order_of_the_cells() -> None:
    draw = np.random.default_rng(3)
    records = [
        repaired(method, int(draw.integers(0, 64)) / 64, data=data, seed=seed)
        for data in "abcd"
        for method in "ABC"
        for seed in (0, 1)
    ]
    expected = ranking(trials(cell_table(records)))
    for _ in range(3):
        shuffled = [records[place] for place in draw.permutation(len(records))]
        assert ranking(trials(cell_table(shuffled))) == expected
