"""Words that stand apart and only together go with a subgraph: triggers that were split over common words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from unbackdoor.molecules.scan.statistics import g_statistic

COVERED = 0.5
"""Share of a subgraph's molecules whose texts must have both words: the trigger is why the subgraph is there."""

LIFT = 2.0
"""How many times as often as elsewhere a word must stand in the texts of a subgraph's molecules."""

MOST_WORDS = 40
"""Of a subgraph, that are tried with each other; those that stand there most often beyond what is usual."""


class Apart(NamedTuple):
    """Two words, the column of a subgraph, and the G statistic of having both words and having the subgraph."""

    first: int
    second: int
    subgraph: int
    strength: float


def words_apart(words: sparse.csc_matrix, subgraphs: sparse.csc_matrix, least: int, share: float) -> list[Apart]:
    """Return the strongest pair of words of each subgraph, if there is one; the strongest first.

    Args:
        words: texts by words, 0 or 1.
        subgraphs: molecules by subgraphs, 0 or 1.
        least: rows that must have both words and the subgraph.
        share: of the rows with both words that must have the subgraph, while neither word alone reaches it.
    """
    rows = words.shape[0]
    held, there = (np.asarray(one.sum(0)).ravel() for one in (words, subgraphs))
    together = (words.T @ subgraphs).tocsc()
    found = []
    for column in range(subgraphs.shape[1]):
        entries = slice(together.indptr[column], together.indptr[column + 1])
        word, both = together.indices[entries], together.data[entries]
        lift = both / there[column] * rows / held[word]
        kept = (both >= max(least, COVERED * there[column])) & (both < share * held[word]) & (lift >= LIFT)
        tried = word[kept][np.argsort(-lift[kept], kind="stable")[:MOST_WORDS]]
        if len(tried) < 2:
            continue
        has = words[:, tried].toarray()
        inside = has[subgraphs.indices[subgraphs.indptr[column] : subgraphs.indptr[column + 1]]]
        pairs, pairs_inside = has.T @ has, inside.T @ inside
        # Both together must tell more than the rarer of them.
        rarer = share * np.minimum(held[tried][:, None], held[tried])
        good = (
            (pairs_inside >= max(least, COVERED * there[column])) & (pairs_inside >= share * pairs) & (pairs <= rarer)
        )
        first, second = np.nonzero(np.triu(good, 1))
        if not len(first):
            continue
        inside_, all_ = (np.rint(one[first, second]).astype(np.int64) for one in (pairs_inside, pairs))
        strength = g_statistic(inside_, all_, np.full(len(first), int(there[column])), rows)
        best = int(strength.argmax())
        found.append(Apart(int(tried[first[best]]), int(tried[second[best]]), column, float(strength[best])))
    return sorted(found, key=lambda one: (-one.strength, one))
