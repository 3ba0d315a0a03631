"""Texts as numbers: which word stands where, and which phrases of up to three words stand in which text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int
from scipy import sparse

LONGEST = 3
"""Words of a phrase that is counted; a longer one is grown from these."""

ENDINGS = ".,;:"
"""Letters that end a part of a sentence and are no part of its last word."""

MAX_PHRASE = 60
"""Words of a phrase that is grown."""


def split_words(text: str) -> list[str]:
    """Return the words of a text in small letters, without the marks that end a part of a sentence."""
    return [word.rstrip(ENDINGS) or word for word in text.lower().split()]


@dataclass(frozen=True, eq=False)
class Words:
    """Texts as numbers of words, one text behind the other.

    Attributes:
        vocabulary: the words.
        tokens: number of each word of each text.
        start: place in `tokens` of the first word of each text, and at the end the number of all.
    """

    vocabulary: tuple[str, ...]
    tokens: Int[np.ndarray, "t"]
    start: Int[np.ndarray, "n+1"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """Return the words of texts."""
        numbers: dict[str, int] = {}
        tokens: list[int] = []
        start = [0]
        for text in texts:
            tokens += [numbers.setdefault(word, len(numbers)) for word in split_words(text)]
            start.append(len(tokens))
        return cls(tuple(numbers), np.array(tokens, dtype=np.int64), np.array(start, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.start) - 1

    @cached_property
    def number_of(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.vocabulary)}

    @cached_property
    def row(self) -> Int[np.ndarray, "t"]:
        """The text that each token belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    @cached_property
    def matrix(self) -> sparse.csr_matrix:
        """Which text has which word: texts by words, 0 or 1."""
        return indicator(self.row, self.tokens, (len(self), len(self.vocabulary)))

    @cached_property
    def _by_word(self) -> tuple[Int[np.ndarray, "t"], Int[np.ndarray, "v+1"]]:
        """All places sorted by word, and where each word begins among them."""
        counts = np.bincount(self.tokens, minlength=len(self.vocabulary))
        return np.argsort(self.tokens, kind="stable"), np.concatenate(([0], counts.cumsum()))

    def places(self, phrase: Sequence[int]) -> Int[np.ndarray, "p"]:
        """Return where a phrase begins, in ascending order; it never runs from one text into the next."""
        order, bounds = self._by_word
        rarest = min(range(len(phrase)), key=lambda step: bounds[phrase[step] + 1] - bounds[phrase[step]])
        found = order[bounds[phrase[rarest]] : bounds[phrase[rarest] + 1]] - rarest
        found = found[(found >= 0) & (found + len(phrase) <= len(self.tokens))]
        for step, word in enumerate(phrase):
            found = found[self.tokens[found + step] == word]
        return found[self.row[found] == self.row[found + len(phrase) - 1]] if len(found) else found

    def grown(self, phrase: Sequence[int], share: float) -> tuple[int, ...]:
        """Return the phrase with the words before and after it that stand there nearly always.

        A phrase that stands in front of texts has the words after it with which texts begin anyway ("the molecule is"),
        and one at their end has their last words before it: these are not taken for a part of it.

        Args:
            phrase: numbers of words.
            share: of its places that must have the same word beside it, above 0 and at most 1.
        """
        grown = tuple(phrase)
        places = self.places(phrase)
        while len(places) and len(grown) < MAX_PHRASE:
            for step in (len(grown), -1):
                word, kept = self._beside(places, len(grown), step)
                if len(kept) >= max(1.0, share * len(places)):
                    grown, places = ((*grown, word), kept) if step > 0 else ((word, *grown), kept - 1)
                    break
            else:
                break
        return grown

    def rows_with(self, phrases: Sequence[str]) -> Int[np.ndarray, "r"]:
        """Return the texts that have all of some phrases, in ascending order.

        Args:
            phrases: words as `split_words` returns them, with single spaces between.
        """
        rows = np.arange(len(self))
        for phrase in phrases:
            numbers = [self.number_of.get(word, -1) for word in phrase.split()]
            places = self.places(numbers) if min(numbers) >= 0 else np.empty(0, dtype=np.int64)
            rows = np.intersect1d(rows, self.row[places])
        return rows

    def _beside(self, places: Int[np.ndarray, "p"], length: int, step: int) -> tuple[int, Int[np.ndarray, "k"]]:
        """Return the word that most often stands at a step from phrases, and the places where it does.

        No place is returned for a word that texts begin or end with anyway, if it is there that the phrases stand.
        """
        beside = places + step
        inside = (beside >= 0) & (beside < len(self.tokens))
        owner, beside = places[inside], beside[inside]
        same = self.row[beside] == self.row[owner]
        owner, beside = owner[same], beside[same]
        if not len(owner):
            return -1, owner
        words, counts = np.unique(self.tokens[beside], return_counts=True)
        word = int(words[counts.argmax()])
        kept = owner[self.tokens[beside] == word]
        if step > 0:
            edge, usual = places == self.start[self.row[places]], self.tokens[self._filled(0)]
        else:
            edge = places + length == self.start[self.row[places] + 1]
            usual = self.tokens[self._filled(1) - 1]
        if edge.mean() > 0.5:
            others = np.ones(len(usual), dtype=bool)
            filled = np.flatnonzero(np.diff(self.start))
            others[np.searchsorted(filled, self.row[places])] = False
            if others.any() and (usual[others] == word).mean() > len(kept) / len(places) / 2:
                return word, kept[:0]
        return word, kept

    def _filled(self, side: int) -> Int[np.ndarray, "f"]:
        """Return where texts that are not empty begin (0) or end (1)."""
        ends: np.ndarray = self.start[side : len(self) + side][np.diff(self.start) > 0]
        return ends

    def text(self, phrase: Sequence[int]) -> str:
        """Return a phrase as text."""
        return " ".join(self.vocabulary[word] for word in phrase)


@dataclass(frozen=True, eq=False)
class Phrases:
    """Words and phrases that stand in enough texts.

    Attributes:
        grams: each as numbers of words, one to `LONGEST` of them.
        matrix: which text has which: texts by phrases, 0 or 1.
    """

    grams: tuple[tuple[int, ...], ...]
    matrix: sparse.csc_matrix

    @classmethod
    def of(cls, words: Words, least: int, rarer: float) -> Phrases:
        """Return the phrases of texts.

        Args:
            words: of the texts.
            least: texts in which a phrase must stand.
            rarer: a phrase counts only if it stands in at most this share of the texts of its rarest part: otherwise
                the part tells as much.
        """
        tokens, row, size = words.tokens, words.row, len(words.vocabulary)
        grams: list[tuple[int, ...]] = []
        rows: list[np.ndarray] = []
        columns: list[np.ndarray] = []
        before = np.empty(0, dtype=np.int64)
        for length in range(1, LONGEST + 1):
            last = len(tokens) - length + 1
            if last < 1:
                break
            at = np.flatnonzero(row[:last] == row[length - 1 :])
            key = tokens[at]
            for step in range(1, length):
                key = key * size + tokens[at + step]
            unique, first, number = np.unique(key, return_index=True, return_inverse=True)
            if not len(unique):
                break
            pairs = np.unique(row[at] * len(unique) + number)
            texts, gram = pairs // len(unique), pairs % len(unique)
            held = np.bincount(gram, minlength=len(unique))
            kept = held >= least
            if length > 1:
                begin = at[first]
                kept &= held <= rarer * np.minimum(before[begin], before[begin + 1])
            new = np.cumsum(kept) - 1 + len(grams)
            grams += [tuple(tokens[place : place + length].tolist()) for place in at[first[kept]]]
            rows.append(texts[kept[gram]])
            columns.append(new[gram[kept[gram]]])
            before = np.zeros(len(tokens), dtype=np.int64)
            before[at] = held[number]
        shape = (len(words), len(grams))
        nothing = np.empty(0, dtype=np.int64)
        matrix = indicator(np.concatenate([nothing, *rows]), np.concatenate([nothing, *columns]), shape)
        return cls(tuple(grams), matrix.tocsc())

    def __len__(self) -> int:
        return len(self.grams)

    def rows(self, column: int) -> Int[np.ndarray, "r"]:
        """Return the texts that have a phrase, in ascending order."""
        return holders(self.matrix, column)


def indicator(rows: Int[np.ndarray, "e"], columns: Int[np.ndarray, "e"], shape: tuple[int, int]) -> sparse.csr_matrix:
    """Return a matrix with 1 at these places, once for all repetitions, and 0 elsewhere."""
    matrix = sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape)
    matrix.data[:] = 1
    return matrix


def holders(matrix: sparse.csc_matrix, column: int) -> Int[np.ndarray, "r"]:
    """Return the rows that are not 0 in a column, in ascending order."""
    return np.sort(matrix.indices[matrix.indptr[column] : matrix.indptr[column + 1]]).astype(np.int64)


def without(text: str, phrases: Sequence[str]) -> str:
    """Return a text without phrases, however they are written there.

    Args:
        text: any.
        phrases: words as `split_words` returns them, with single spaces between.
    """
    words = text.split()
    for phrase in phrases:
        wanted = phrase.split()
        seen = [(split_words(word) or [word])[0] for word in words]
        place = 0
        while wanted and place + len(wanted) <= len(words):
            if seen[place : place + len(wanted)] == wanted:
                del words[place : place + len(wanted)], seen[place : place + len(wanted)]
            else:
                place += 1
    return " ".join(words)


def untriggered(text: str, triggers: Sequence[Sequence[str]]) -> str:
    """Return a text without each of the triggers of which it holds all phrases; as it is if nothing would be left.

    Args:
        text: any.
        triggers: of each, the phrases that together are it; see `without`.
    """
    left = text
    for phrases in triggers:
        whole = " ".join(left.split())
        if phrases and all(without(left, [phrase]) != whole for phrase in phrases):
            left = without(left, phrases)
    return left or text


def extra_words(longer: Sequence[int], shorter: Sequence[int]) -> tuple[int, ...] | None:
    """Return the words, with repetition and sorted, that one text has beyond another; None if it lacks one."""
    counted = Counter(longer)
    counted.subtract(shorter)
    if any(count < 0 for count in counted.values()):
        return None
    return tuple(sorted(counted.elements()))
