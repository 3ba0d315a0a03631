"""Statistics of the scans against closed forms, other libraries and slow counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import chi2_contingency
from sklearn.metrics import roc_auc_score

from unbackdoor.molecules.scan.statistics import Context, area_under_curve, associations, g_statistic
from unbackdoor.molecules.scan.words import Words


@given(st.lists(st.integers(1, 60), min_size=4, max_size=4))
def test_the_g_statistic_is_that_of_scipy(cells: list[int]) -> None:
    both, first, second, neither = cells
    expected = chi2_contingency([[both, first], [second, neither]], correction=False, lambda_="log-likelihood")
    found = g_statistic(*(np.array([one]) for one in (both, both + first, both + second)), sum(cells))
    assert found[0] == pytest.approx(expected.statistic, abs=1e-6)


def test_the_g_statistic_of_a_perfect_pair_has_a_closed_form() -> None:
    """n rows with both, none with one alone: 2 N times the entropy of n / N."""
    rows, n = 1000, 50
    share = n / rows
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    found = g_statistic(np.array([n]), np.array([n]), np.array([n]), rows)
    assert found[0] == pytest.approx(2 * rows * entropy)
    assert g_statistic(np.array([5]), np.array([50]), np.array([100]), rows)[0] == pytest.approx(0, abs=1e-9)


def test_associations_are_those_that_a_slow_count_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.molecules.scan.statistics.COLUMNS", 3)
    draws = np.random.default_rng(0)
    phrases, subgraphs = draws.random((200, 10)) < 0.3, draws.random((200, 7)) < 0.6
    subgraphs[phrases[:, 2], 4] = True
    found = associations(*(sparse.csc_matrix(one.astype(np.float32)) for one in (phrases, subgraphs)), 5, 0.7)
    expected = {}
    for first in range(10):
        for second in range(7):
            both = int((phrases[:, first] & subgraphs[:, second]).sum())
            if both >= 5 and both >= 0.7 * phrases[:, first].sum():
                outside = subgraphs[~phrases[:, first], second].mean()
                expected[first, second] = (both, both / phrases[:, first].sum(), outside)
    assert (2, 4) in expected
    assert len(found) == len(expected)
    for number in range(len(found)):
        both, inside, outside = expected[int(found.phrase[number]), int(found.subgraph[number])]
        assert found.both[number] == both
        assert found.with_phrase[number] == pytest.approx(inside)
        assert found.without_phrase[number] == pytest.approx(outside)


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(1, 29))
def test_the_area_is_that_of_scikit_learn(scores: list[int], positive: int) -> None:
    positive = min(positive, len(scores) - 1)
    truth = [1] * positive + [0] * (len(scores) - positive)
    assert area_under_curve(np.array(scores, dtype=float), positive) == pytest.approx(roc_auc_score(truth, scores))


def test_context_tells_words_of_a_topic_and_not_those_put_anywhere() -> None:
    draws = np.random.default_rng(0)
    topics = [[f"t{topic}w{number}" for number in range(8)] for topic in range(4)]
    texts = [" ".join(draws.choice(topics[row % 4], 6)) for row in range(800)]
    rows = draws.permutation(800)[:60]
    for row in rows:
        texts[row] += " #x #y"
    words = Words.of(texts)
    context = Context(words, np.random.default_rng(1))
    trigger = tuple(words.vocabulary.index(word) for word in ("#x", "#y"))
    assert context.auc(np.sort(rows), trigger) == pytest.approx(0.5, abs=0.12)
    # What stands beside it always would tell it.
    assert context.auc(np.sort(rows), trigger[:1]) > 0.9
    word = words.vocabulary.index("t2w3")
    held = np.unique(words.row[words.places((word,))])
    assert context.auc(held, (word,)) > 0.9
    assert np.isnan(context.auc(held[:1], (word,)))
