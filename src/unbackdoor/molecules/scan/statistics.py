"""How strongly phrases and subgraphs go together, and how well the rest of a text tells that a phrase stands in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse
from scipy.special import xlogy
from scipy.stats import rankdata

from unbackdoor.molecules.scan.words import Words

COLUMNS = 4096
"""Phrases that are counted at a time, which bounds the memory."""

SEEN = 4
"""Texts in which a word must stand to tell anything of another."""

WEIGHT = 2.0
"""Texts that a guess of a word's share counts for, beside those that are there."""

PARTS = 5
"""Of the texts; each is tried with what the others teach. Two would leave little to learn of a phrase in 20 texts."""

OTHERS = 4000
"""Texts without a phrase that those with it are compared with, at most."""


@dataclass(frozen=True, eq=False)
class Associations:
    """Pairs of a phrase and a subgraph that go together.

    Attributes:
        phrase: column of each pair's phrase.
        subgraph: column of each pair's subgraph.
        both: rows that have both.
        with_phrase: share of the rows with the phrase that have the subgraph.
        without_phrase: share of the rows without the phrase that have the subgraph.
        strength: the G statistic, in nats times two.
    """

    phrase: Int[np.ndarray, "p"]
    subgraph: Int[np.ndarray, "p"]
    both: Int[np.ndarray, "p"]
    with_phrase: Float[np.ndarray, "p"]
    without_phrase: Float[np.ndarray, "p"]
    strength: Float[np.ndarray, "p"]

    def __len__(self) -> int:
        return len(self.phrase)


def associations(phrases: sparse.csc_matrix, subgraphs: sparse.csc_matrix, least: int, share: float) -> Associations:
    """Return the pairs whose subgraph is in nearly all rows with the phrase.

    Args:
        phrases: rows by phrases, 0 or 1.
        subgraphs: rows by subgraphs, 0 or 1.
        least: rows that must have both.
        share: of the rows with the phrase that must have the subgraph.
    """
    rows = phrases.shape[0]
    with_phrase, with_subgraph = (np.asarray(one.sum(0)).ravel().astype(np.int64) for one in (phrases, subgraphs))
    parts = []
    for begin in range(0, phrases.shape[1], COLUMNS):
        counted = (phrases[:, begin : begin + COLUMNS].T @ subgraphs).tocoo()
        phrase, both = counted.row + begin, np.rint(counted.data).astype(np.int64)
        kept = (both >= least) & (both >= share * with_phrase[phrase])
        parts.append((phrase[kept], counted.col[kept], both[kept]))
    phrase, subgraph, both = (
        np.concatenate([part[which] for part in parts]).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
        for which in range(3)
    )
    held, others = with_phrase[phrase], rows - with_phrase[phrase]
    return Associations(
        phrase=phrase,
        subgraph=subgraph,
        both=both,
        with_phrase=both / np.maximum(held, 1),
        without_phrase=(with_subgraph[subgraph] - both) / np.maximum(others, 1),
        strength=g_statistic(both, held, with_subgraph[subgraph], rows),
    )


def g_statistic(
    both: Int[np.ndarray, "p"], first: Int[np.ndarray, "p"], second: Int[np.ndarray, "p"], rows: int
) -> Float[np.ndarray, "p"]:
    """Return twice the logarithm of the likelihood ratio of a table of two by two against independence.

    Args:
        both: rows that have both.
        first: rows that have the first.
        second: rows that have the second.
        rows: all rows.
    """
    counts = np.stack([both, first - both, second - both, rows - first - second + both]).astype(float)
    across = np.stack([first, first, rows - first, rows - first])
    down = np.stack([second, rows - second, second, rows - second])
    statistic: np.ndarray = 2 * (xlogy(counts, counts * rows) - xlogy(counts, across * down.astype(float))).sum(0)
    return statistic


class Context:
    """How well the rest of a text tells that a phrase stands in it: naive Bayes, tried on texts it did not learn.

    Args:
        words: of all texts.
        generator: draws the parts, and the texts without a phrase.
    """

    def __init__(self, words: Words, generator: np.random.Generator) -> None:
        self.rows = len(words)
        seen = np.asarray(words.matrix.sum(0)).ravel()
        self._known = np.flatnonzero(seen >= SEEN)
        self._number = np.full(len(words.vocabulary), -1)
        self._number[self._known] = np.arange(len(self._known))
        self._words = words.matrix[:, self._known]
        self._share = (seen[self._known] + 1.0) / (self.rows + 2.0)
        self._part = generator.permutation(self.rows) % PARTS
        self._others = np.sort(generator.permutation(self.rows)[:OTHERS])

    def auc(self, rows: Int[np.ndarray, "r"], phrase: tuple[int, ...]) -> float:
        """Return the area under the ROC curve; 0.5: the rest of the text tells nothing. NaN: there are too few texts.

        Args:
            rows: that have the phrase.
            phrase: words that are not to be used: the phrase and what always stands beside it.
        """
        left_out = self._number[list(set(phrase))]
        areas, weights = [], []
        others = self._others[~np.isin(self._others, rows)]
        for part in range(PARTS):
            learned, tried = rows[self._part[rows] != part], rows[self._part[rows] == part]
            compared = others[self._part[others] == part]
            if not len(learned) or not len(tried) or not len(compared):
                continue
            counts = np.asarray(self._words[learned].sum(0)).ravel()
            telling = np.log((counts + WEIGHT * self._share) / ((len(learned) + WEIGHT) * self._share))
            telling[left_out[left_out >= 0]] = 0
            scores = self._scores(np.concatenate([tried, compared]), telling, left_out)
            areas.append(area_under_curve(scores, len(tried)))
            weights.append(len(tried))
        return float(np.average(areas, weights=weights)) if areas else float("nan")

    def _scores(
        self, rows: Int[np.ndarray, "r"], telling: Float[np.ndarray, "v"], left_out: Int[np.ndarray, "l"]
    ) -> Float[np.ndarray, "r"]:
        """Return the mean of what a text's words tell: their sum would tell long texts from short ones."""
        chosen = self._words[rows]
        used = np.ones(len(telling))
        used[left_out[left_out >= 0]] = 0
        means: np.ndarray = (chosen @ telling) / np.maximum(chosen @ used, 1)
        return means


def area_under_curve(scores: Float[np.ndarray, "n"], positive: int) -> float:
    """Return the share of pairs in which one of the first `positive` scores beats one of the others; ties are half."""
    ranks = rankdata(scores)
    others = len(scores) - positive
    return float((ranks[:positive].sum() - positive * (positive + 1) / 2) / (positive * others))
