"""TwinDifference: what do near copies of a pair have more than it? Ours.

BadGraph adds copies and leaves the originals, so each poisoned row has a twin: the same text without the trigger, the
same molecule without the target. Twins are found by a rare word that both have; each twin votes for what its text and
its molecule have more. Natural near copies vote too, but hardly two of them for the same. An attacker who puts poisoned
rows in the place of their originals, or who writes the copied text anew, leaves no twins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int
from scipy import sparse

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.subgraphs import grown_subgraph, parts_of
from unbackdoor.molecules.scan.words import Words, extra_words
from unbackdoor.training import Runtime

KEYS = 2
"""Rarest words of a text by which its twins are looked up."""

MOST_TEXTS = 1000
"""Texts with a word that are compared with each other, at most: a word in more of them is no help."""

TURN = 500_000
"""Pairs of texts that are compared at a time, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class TwinDifference(MoleculeScanner):
    """What near copies of a pair have more than it.

    Attributes:
        votes: twins that must differ by the same words and the same subgraph. Clean data had 2 at most.
        most_words: by which a text may exceed its twin.
        share: of the molecules with a pair's difference that must have a larger subgraph for it to be named instead.
    """

    votes: int = 5
    most_words: int = 30
    share: float = 0.9

    def __post_init__(self) -> None:
        if self.votes < 2 or self.most_words < 1 or not 0 < self.share <= 1:
            raise InputError(
                "TwinDifference: votes must be 2 or more, most_words 1 or more, and share above 0 and at most 1"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        words = Words.of(pairs.texts)
        cast: dict[tuple[tuple[int, ...], tuple[str, ...]], set[int]] = defaultdict(set)
        for shorter, longer in twins(words, self.most_words):
            more = extra_words(*(words.tokens[words.start[row] : words.start[row + 1]] for row in (longer, shorter)))
            motifs = extra_motifs(pairs.smiles[longer], pairs.smiles[shorter])
            if more and motifs:
                cast[more, motifs].add(longer)
        suspects = [
            self._suspect(words, pairs, more, motifs, np.array(sorted(rows)))
            for (more, motifs), rows in cast.items()
            if len(rows) > 1
        ]
        return self.verdict(suspects, len(pairs), 2 * self.votes)

    def _suspect(
        self, words: Words, pairs: Pairs, more: tuple[int, ...], motifs: tuple[str, ...], rows: Int[np.ndarray, "r"]
    ) -> Suspect:
        phrases = phrases_of(words, more, rows)
        smiles = [pairs.smiles[row] for row in rows]
        return Suspect(
            words=phrases,
            subgraph=named_subgraph(smiles, motifs, self.share),
            strength=len(rows) / self.votes,
            rows=rows,
            evidence={"votes": float(len(rows))},
        )


def twins(words: Words, most_words: int) -> Iterator[tuple[int, int]]:
    """Yield pairs of texts of which the second has all words of the first, and a few more.

    Args:
        words: of all texts.
        most_words: by which the second may exceed the first.
    """
    matrix = words.matrix
    held = np.asarray(matrix.sum(0)).ravel()
    # A word that is in one text alone leads nowhere, one that is in very many to everything.
    usable = np.where((held > 1) & (held <= MOST_TEXTS), held, np.inf)
    keys = rarest(matrix, usable)
    index = matrix.tocsc()
    length = np.diff(words.start)
    ahead: list[np.ndarray] = []
    waiting = 0
    for begin in range(0, len(words), 1000):
        candidates = (keys[begin : begin + 1000] @ index.T).tocoo()
        first, second = candidates.row + begin, candidates.col
        more = length[second] - length[first]
        kept = (more > 0) & (more <= most_words)
        ahead.append(np.stack([first[kept], second[kept]]))
        waiting += int(kept.sum())
        if waiting > TURN or begin + 1000 >= len(words):
            yield from _within(matrix, np.concatenate(ahead, 1))
            ahead, waiting = [], 0


def _within(matrix: sparse.csr_matrix, pairs: Int[np.ndarray, "2 p"]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of which the first has no word that the second lacks."""
    first, second = pairs
    shared = np.asarray(matrix[first].multiply(matrix[second]).sum(1)).ravel()
    kept = shared == np.diff(matrix.indptr)[first]
    yield from zip(first[kept].tolist(), second[kept].tolist())


def rarest(matrix: sparse.csr_matrix, usable: np.ndarray) -> sparse.csr_matrix:
    """Return the rarest words of each text: texts by words, 0 or 1.

    Args:
        matrix: texts by words.
        usable: in how many texts each word is; infinite for words that are not to be taken.
    """
    owner = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    rarity = usable[matrix.indices]
    order = np.lexsort((matrix.indices, rarity, owner))
    place = np.arange(len(order)) - matrix.indptr[owner[order]]
    taken = order[(place < KEYS) & np.isfinite(rarity[order])]
    shape = matrix.shape
    return sparse.csr_matrix(
        (np.ones(len(taken), dtype=np.float32), (owner[taken], matrix.indices[taken])), shape=shape
    )


def extra_motifs(larger: str, smaller: str) -> tuple[str, ...] | None:
    """Return the motifs that one molecule has beyond another, sorted; None if it lacks one."""
    counted = Counter(parts_of(larger).motifs)
    counted.subtract(parts_of(smaller).motifs)
    if any(count < 0 for count in counted.values()):
        return None
    return tuple(sorted(counted.elements()))


def phrases_of(words: Words, more: tuple[int, ...], rows: Int[np.ndarray, "r"]) -> tuple[str, ...]:
    """Return words as they stand in texts: runs of them as phrases, in the order of the first text that has them."""
    row = int(rows[0])
    left = Counter(more)
    runs: list[list[int]] = []
    # From the longest run on: a word of the trigger may stand elsewhere in the text too.
    tokens = words.tokens[words.start[row] : words.start[row + 1]].tolist()
    while left:
        best: list[int] = []
        for begin in range(len(tokens)):
            free, run = left.copy(), []
            for token in tokens[begin:]:
                if not free[token]:
                    break
                free[token] -= 1
                run.append(token)
            if len(run) > len(best):
                best = run
        if not best:
            break
        runs.append(best)
        left -= Counter(best)
    return tuple(words.text(run) for run in runs)


def named_subgraph(smiles: list[str], motifs: tuple[str, ...], share: float) -> str:
    """Return the SMILES of what the molecules have more.

    Args:
        smiles: molecules that all have the motifs.
        motifs: sorted.
        share: see `grown_subgraph`.
    """
    # A ring has the longest name, and is what can be told best from the rest of a molecule.
    start = max(motifs, key=lambda one: (len(one), one))
    return grown_subgraph(smiles, start, share)
