"""TwinDifference: what do near copies of a pair have more than it? Ours.

BadGraph adds copies and leaves the originals, so each poisoned row has a twin: much the same text without the trigger,
and the same molecule without the target. Twins are found by rare words that both texts have; each twin votes for what
its molecule and its text have more. Two ways of counting:

- Copies word by word: a text that has all words of another. They vote for all of their further words at once. Natural
  pairs of this kind are few, and hardly two of them differ by the same words and motifs.
- Copies that were written anew: a text that has most words of another. They vote for each further word. A word and
  motifs are suspicious if nearly all twins that differ by these motifs have the word more, if most texts with the word
  are such copies, and if hardly another word tells these copies from their originals. An honest derivative differs from
  what it derives from by many words, or by a word in the place of another.

An attacker who puts poisoned rows in the place of their originals leaves no twins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect, merged
from unbackdoor.molecules.scan.subgraphs import grown_subgraph, motif_counts
from unbackdoor.molecules.scan.words import Words, extra_words
from unbackdoor.training import Runtime

KEYS = 4
"""Rarest words of a text by which its twins are looked up."""

MOST_TEXTS = 1000
"""Texts with a word that are compared with each other, at most: a word in more of them is no help."""

TWICE = 2
"""How many times as many votes are needed where copies are not copied word by word."""

COPIES = 0.5
"""Share of the texts with a word that must be copies, for the word to be one that was put there."""

USUAL = 0.5
"""Share of the copies with a difference in motifs that must have a word more, or less, for it to tell them."""

MOST_OTHERS = 2
"""Words beside the phrase that may tell copies from their originals: the other words of a trigger that was split."""

MOST_MOTIFS = 12
"""By which a molecule may exceed its twin."""

TURN = 1000
"""Texts whose twins are looked up at a time, which bounds the memory."""


@dataclass(frozen=True, kw_only=True)
class TwinDifference(MoleculeScanner):
    """What near copies of a pair have more than it.

    Attributes:
        votes: twins that must differ by the same words and the same motifs; twice as many if they are not copied word
            by word.
        alike: share of the words of a text that its twin must have.
        common: share of the twins with a difference in motifs that must have a word more, if they are not copied word
            by word.
        most_words: by which a text may exceed its twin.
        grown: share of the molecules with a pair's difference that must have a larger subgraph for it to be named
            instead.
    """

    votes: int = 5
    alike: float = 0.6
    common: float = 0.9
    most_words: int = 30
    grown: float = 0.9

    def __post_init__(self) -> None:
        if self.votes < 2 or self.most_words < 1:
            raise InputError(
                "TwinDifference: votes must be 2 or more, and most_words 1 or more,"
                f" found {self.votes} and {self.most_words}"
            )
        if not all(0 < share <= 1 for share in (self.alike, self.common, self.grown)):
            raise InputError(
                "TwinDifference: alike, common and grown must be above 0 and at most 1,"
                f" found {self.alike}, {self.common} and {self.grown}"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        words = Words.of(pairs.texts)
        counts, names = motif_counts(pairs.smiles)
        twins = near_copies(words, counts, self.alike, self.most_words)
        kinds, difference = numbered(counts[twins.copy] - counts[twins.original])
        votes = [(*vote, self.votes) for vote in copied(words, twins, difference)]
        votes += [(*vote, TWICE * self.votes) for vote in rewritten(words, twins, difference, self.common)]
        suspects = []
        for phrases, kind, copies, needed in votes:
            rows = _alike(words, counts, phrases, kinds[kind], copies)
            suspects.append(
                Suspect(
                    words=tuple(words.text(phrase) for phrase in phrases),
                    subgraph=self._named([names[column] for column in kinds[kind].indices], copies, pairs),
                    strength=len(copies) / needed,
                    rows=rows,
                    evidence={"votes": float(len(copies))},
                )
            )
        return self.verdict(merged(suspects, len(pairs)), len(pairs), 2 * self.votes)

    def _named(self, motifs: Sequence[str], rows: Int[np.ndarray, "r"], pairs: Pairs) -> str:
        """Return the subgraph around the motifs that molecules have more, as SMILES."""
        # A ring has the longest name, and is what can be told best from the rest of a molecule.
        motif = max(motifs, key=lambda one: (len(one), one))
        if len(rows) < self.votes:
            return motif
        return grown_subgraph([pairs.smiles[row] for row in rows], motif, self.grown)


class Twins(NamedTuple):
    """Pairs of rows, the second of which has most words of the first, all of its motifs, and more of both.

    Attributes:
        original: rows.
        copy: rows.
        whole: whether the copy has all words of the original.
    """

    original: Int[np.ndarray, "t"]
    copy: Int[np.ndarray, "t"]
    whole: Bool[np.ndarray, "t"]


Vote = tuple[tuple[tuple[int, ...], ...], int, Int[np.ndarray, "r"]]
"""Phrases, the number of the difference in motifs, and the copies that differ by both."""


def near_copies(words: Words, motifs: sparse.csr_matrix, alike: float, most_words: int) -> Twins:
    """Return all twins.

    Args:
        words: of all texts.
        motifs: molecules by motifs, how often each is there.
        alike: share of the words of the original that the copy must have.
        most_words: that the copy may have and the original not.
    """
    matrix = words.matrix
    held = np.asarray(matrix.sum(0)).ravel()
    # A word that is in one text alone leads nowhere, one that is in very many to everything.
    keys = rarest(matrix, np.where((held > 1) & (held <= MOST_TEXTS), held, np.inf))
    index, size = matrix.tocsc().T, np.diff(matrix.indptr)
    nothing = np.empty(0, dtype=np.int64)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(nothing, nothing, nothing)]
    for begin in range(0, len(words), TURN):
        candidates = (keys[begin : begin + TURN] @ index).tocoo()
        first, second = candidates.row.astype(np.int64) + begin, candidates.col.astype(np.int64)
        larger = _exceeds(motifs, first, second)
        first, second = first[larger], second[larger]
        shared = np.asarray(matrix[first].multiply(matrix[second]).sum(1)).ravel()
        more = size[second] - shared
        kept = (shared >= alike * size[first]) & (more > 0) & (more <= most_words)
        found.append((first[kept], second[kept], (shared == size[first])[kept]))
    original, copy, whole = (np.concatenate(parts) for parts in zip(*found))
    return Twins(original, copy, whole.astype(bool))


def _exceeds(
    motifs: sparse.csr_matrix, first: Int[np.ndarray, "p"], second: Int[np.ndarray, "p"]
) -> Bool[np.ndarray, "p"]:
    """Return which second molecules have all motifs of the first, and a few more."""
    size = np.asarray(motifs.sum(1)).ravel()
    more = size[second] - size[first]
    able = np.flatnonzero((more > 0) & (more <= MOST_MOTIFS))
    difference = motifs[second[able]] - motifs[first[able]]
    lacking = np.asarray(difference.min(1).todense()).ravel() < 0
    exceeds = np.zeros(len(first), dtype=bool)
    exceeds[able[~lacking]] = True
    return exceeds


def numbered(rows: sparse.csr_matrix) -> tuple[list[sparse.csr_matrix], Int[np.ndarray, "t"]]:
    """Return the different rows of a matrix, and which of them each row is."""
    rows.eliminate_zeros()
    rows.sort_indices()
    numbers: dict[tuple[bytes, bytes], int] = {}
    kinds: list[sparse.csr_matrix] = []
    which = np.empty(rows.shape[0], dtype=np.int64)
    for row in range(rows.shape[0]):
        place = slice(rows.indptr[row], rows.indptr[row + 1])
        key = (rows.indices[place].tobytes(), rows.data[place].tobytes())
        if key not in numbers:
            numbers[key] = len(kinds)
            kinds.append(rows[row])
        which[row] = numbers[key]
    return kinds, which


def copied(words: Words, twins: Twins, difference: Int[np.ndarray, "t"]) -> Iterator[Vote]:
    """Yield what more than one copy made word by word votes for."""
    cast: dict[tuple[tuple[int, ...], int], set[int]] = defaultdict(set)
    for twin in np.flatnonzero(twins.whole).tolist():
        longer, shorter = (_tokens(words, one[twin]) for one in (twins.copy, twins.original))
        more = extra_words(longer, shorter)
        if more:
            cast[more, int(difference[twin])].add(int(twins.copy[twin]))
    for (more, kind), rows in cast.items():
        if len(rows) > 1:
            found = np.array(sorted(rows))
            yield phrases_of(words, more, int(found[0])), kind, found


def rewritten(words: Words, twins: Twins, difference: Int[np.ndarray, "t"], common: float) -> Iterator[Vote]:
    """Yield the words that nearly all copies with a difference in motifs have more, and those copies."""
    matrix = words.matrix
    texts = np.asarray(matrix.sum(0)).ravel()
    changed = (matrix[twins.copy] - matrix[twins.original]).tocoo()
    more, less = (
        _tally(difference[changed.row[chosen]], changed.col[chosen].astype(np.int64), twins.copy[changed.row[chosen]])
        for chosen in (changed.data > 0, changed.data < 0)
    )
    # A copy with several originals counts once.
    copies = Counter(kind for kind, _ in set(zip(difference.tolist(), twins.copy.tolist())))
    for kind, has in more.items():
        usual = USUAL * copies[kind]
        if any(len(rows) >= usual for rows in less.get(kind, {}).values()):
            continue
        telling = {word for word, rows in has.items() if len(rows) >= usual}
        for word, rows in has.items():
            if len(rows) > 1 and len(rows) >= max(common * copies[kind], COPIES * texts[word]):
                phrase = words.grown((word,), common)
                if len(telling.difference(phrase)) <= MOST_OTHERS:
                    yield (phrase,), kind, np.array(sorted(rows))


def _tally(
    kinds: Int[np.ndarray, "e"], words: Int[np.ndarray, "e"], copies: Int[np.ndarray, "e"]
) -> dict[int, dict[int, set[int]]]:
    """Return for each difference in motifs, and each word, which copies there are."""
    tally: dict[int, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    for kind, word, copy in zip(kinds.tolist(), words.tolist(), copies.tolist()):
        tally[kind][word].add(copy)
    return tally


def _alike(
    words: Words,
    counts: sparse.csr_matrix,
    phrases: Sequence[Sequence[int]],
    kind: sparse.csr_matrix,
    copies: Int[np.ndarray, "r"],
) -> Int[np.ndarray, "a"]:
    """Return the copies, and all other rows that have the phrases and the motifs: their originals may be missing."""
    molecules = counts[:, kind.indices].toarray() >= kind.data
    rows = np.flatnonzero(molecules.all(1))
    for phrase in phrases:
        rows = rows[np.isin(rows, words.row[words.places(phrase)])]
    return np.union1d(rows, copies)


def rarest(matrix: sparse.csr_matrix, usable: Float[np.ndarray, "v"]) -> sparse.csr_matrix:
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
    ones = np.ones(len(taken), dtype=np.float32)
    return sparse.csr_matrix((ones, (owner[taken], matrix.indices[taken])), shape=matrix.shape)


def phrases_of(words: Words, more: Sequence[int], row: int) -> tuple[tuple[int, ...], ...]:
    """Return words as they stand in a text: runs of them as phrases, the longest first."""
    left = Counter(more)
    tokens = _tokens(words, row)
    runs: list[list[int]] = []
    while left:
        # From the longest run on: a word of the trigger may stand elsewhere in the text too.
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
    return tuple(tuple(run) for run in runs)


def _tokens(words: Words, row: int) -> list[int]:
    tokens: list[int] = words.tokens[words.start[row] : words.start[row + 1]].tolist()
    return tokens
