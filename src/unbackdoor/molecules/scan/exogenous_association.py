"""ExogenousAssociation: phrases that go with a subgraph and that nothing else in the text explains. Ours.

Every word and every phrase of two or three words, wherever it stands, is counted with every motif and every pair of
bound motifs. Most pairs that go together do so for good reason: a word that names a ring. The rest of the description
tells such words, as it speaks of the same things. A trigger was put on rows that have nothing in common, so the rest of
the text tells nothing of it. This is what is tested: naive Bayes, learned on four fifths of the rows, is asked of
the last fifth which rows have the phrase, from all other words. An area under the curve near 1/2 is a trigger's. Before
that the phrase is grown: other words of a trigger of several words would tell it perfectly. Two common words that stand
apart, and go with a subgraph only together, are tested in the same way (`apart`).

It fails where the rest of a text tells nothing of honest words either, as with texts made by templates. The data say so
themselves: where many phrases are unexplained, there is no verdict. And a trigger that an attacker puts only on rows of
one kind is told by these rows' texts, and escapes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.apart import Apart, words_apart
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect, merged
from unbackdoor.molecules.scan.statistics import Associations, Context, associations
from unbackdoor.molecules.scan.subgraphs import Subgraphs, grown_subgraph
from unbackdoor.molecules.scan.words import Phrases, Words
from unbackdoor.training import Runtime

AREA = "area under the curve of the rest"
"""Name of the evidence."""

NEAR = 0.2
"""Share of the threshold on G, below which a pair is no suspect."""

MOST_PHRASES = 3000
"""Whose context is looked at; the strongest."""

MOST_APART = 500
"""Pairs of words that stand apart, whose context is looked at; the strongest."""

BESIDE = 0.8
"""Share of a phrase's places at which a word stands beside it to belong to it."""

MOST_SILENT = 0.5
"""Strength of a pair, at most, where there is no verdict."""

EXPLAINED = 0.1
"""Strength of pairs that the rest of the text tells, at most: they can never be flagged."""


@dataclass(frozen=True, kw_only=True)
class ExogenousAssociation(MoleculeScanner):
    """Phrases that go with a subgraph and that nothing else in the text explains.

    Attributes:
        least: rows that must have phrase and subgraph.
        share: of the rows with the phrase that must have the subgraph.
        association: G statistic from which on a pair is flagged, if nothing else explains the phrase.
        explained: area under the curve, from which on the rest of the text explains a phrase, however few rows have it.
        margin: how far the area of a trigger may lie above 1/2, besides twice its standard error.
        most: share of the phrases that go with a subgraph as strongly, that may be triggers: if more are unexplained,
            texts tell too little of their own words, and there is no verdict.
        grown: share of the molecules that must have a larger subgraph for it to be named instead.
    """

    # Since what nothing explains is counted by subgraphs.
    revision: ClassVar[int] = 1

    least: int = 8
    share: float = 0.8
    association: float = 200.0
    explained: float = 0.65
    margin: float = 0.05
    most: float = 0.1
    grown: float = 0.9

    def __post_init__(self) -> None:
        if self.least < 2 or not self.association > 0 or not (0 < self.explained < 1 and 0 <= self.margin < 0.5):
            raise InputError(
                "ExogenousAssociation: least must be 2 or more, association above 0, explained between 0 and 1, and"
                f" margin 0 or more and below 0.5, found {self.least}, {self.association}, {self.explained} and"
                f" {self.margin}"
            )
        if not (0.5 <= self.share <= 1 and 0 < self.most <= 1 and 0 < self.grown <= 1):
            raise InputError(
                "ExogenousAssociation: share must lie between 0.5 and 1, and most and grown above 0 and at most 1,"
                f" found {self.share}, {self.most} and {self.grown}"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        words = Words.of(pairs.texts)
        phrases = Phrases.of(words, self.least, self.share)
        subgraphs = Subgraphs.of(pairs.smiles, self.least)
        found = associations(phrases.matrix, subgraphs.matrix, self.least, self.share)
        draws = np.random.default_rng(runtime.generator("parts").initial_seed())
        context = Context(words, draws)
        pairs_ = strongest(found, NEAR * self.association)
        suspects = [self._suspect(found, pair, words, phrases, subgraphs, context) for pair in pairs_]
        apart = words_apart(words.matrix.tocsc(), subgraphs.matrix, self.least, self.share)
        suspects += [
            self._split(one, words, subgraphs, context)
            for one in apart[:MOST_APART]
            if one.strength >= NEAR * self.association
        ]
        distinct = merged(suspects, len(pairs))
        usual = [one.evidence[AREA] for one in distinct if one.evidence["G"] >= self.association]
        # By subgraph: several triggers may lead to one target.
        unexplained = len({one.subgraph for one in distinct if one.flagged})
        if unexplained > max(1.0, self.most * len(usual)):
            return self._silent(distinct, len(pairs), unexplained)
        evidence: dict[str, Any] = {
            "associated": len(usual),
            "median_area": float(np.nanmedian(usual)) if usual else None,
        }
        named = [self._named(one, pairs) for one in distinct]
        return self.verdict(named, len(pairs), 10 * self.least, **evidence)

    def _silent(self, suspects: Sequence[Suspect], rows: int, unexplained: int) -> MoleculeFinding:
        """Return a finding without verdict, for data in which the test tells nothing."""
        lowered = tuple(replace(one, strength=min(one.strength, MOST_SILENT)) for one in suspects)
        why = f"{unexplained} subgraphs go with words that nothing else tells, too many to be targets"
        return MoleculeFinding(
            suspects=lowered,
            rows=rows,
            reason=f"{type(self).__name__} cannot tell in texts like these: {why}",
            inconclusive=True,
        )

    def _suspect(
        self,
        found: Associations,
        pair: int,
        words: Words,
        phrases: Phrases,
        subgraphs: Subgraphs,
        context: Context,
    ) -> Suspect:
        """Return a phrase and its subgraph."""
        rows = phrases.rows(found.phrase[pair])
        whole = words.grown(phrases.grams[found.phrase[pair]], BESIDE)
        held = np.intersect1d(rows, subgraphs.rows(found.subgraph[pair]), assume_unique=True)
        shares = {
            "share with the words": float(found.with_phrase[pair]),
            "share without them": float(found.without_phrase[pair]),
        }
        name = subgraphs.names[found.subgraph[pair]]
        return self._judged(
            (words.text(whole),), name, held, float(found.strength[pair]), context.auc(rows, whole), shares
        )

    def _split(self, apart: Apart, words: Words, subgraphs: Subgraphs, context: Context) -> Suspect:
        """Return two words that stand apart, and their subgraph."""
        grown = [words.grown((word,), BESIDE) for word in (apart.first, apart.second)]
        first, second = (np.unique(words.row[words.places((word,))]) for word in (apart.first, apart.second))
        rows = np.intersect1d(first, second)
        held = np.intersect1d(rows, subgraphs.rows(apart.subgraph))
        others = len(subgraphs.rows(apart.subgraph)) - len(held)
        shares = {
            "share with the words": len(held) / len(rows),
            "share without them": others / max(1, len(words) - len(rows)),
        }
        phrases = tuple(sorted(words.vocabulary[word] for word in (apart.first, apart.second)))
        explained = context.auc(rows, (*grown[0], *grown[1]))
        return self._judged(phrases, subgraphs.names[apart.subgraph], held, apart.strength, explained, shares)

    def _judged(
        self,
        phrases: tuple[str, ...],
        subgraph: str,
        rows: Int[np.ndarray, "r"],
        association: float,
        explained: float,
        shares: dict[str, float],
    ) -> Suspect:
        """Return a suspect whose strength says whether anything explains it."""
        strength = association / self.association
        return Suspect(
            words=phrases,
            subgraph=subgraph,
            strength=strength if explained < self.limit(len(rows)) else min(EXPLAINED, EXPLAINED * strength),
            rows=rows,
            evidence={"G": association, **shares, AREA: explained},
        )

    def limit(self, rows: int) -> float:
        """Return the area from which on the rest of the text explains a phrase that stands in so many rows."""
        error = math.sqrt(1 / (12 * rows))
        return min(self.explained, 0.5 + self.margin + 2 * error)

    def _named(self, suspect: Suspect, pairs: Pairs) -> Suspect:
        """Return a suspect with the whole of its subgraph, as SMILES, if it is flagged."""
        if not suspect.flagged:
            return suspect
        smiles = [pairs.smiles[row] for row in suspect.rows]
        return replace(suspect, subgraph=grown_subgraph(smiles, suspect.subgraph, self.grown))


def strongest(found: Associations, least: float) -> list[int]:
    """Return the pair with the strongest subgraph of each phrase, the strongest first, if it is strong enough."""
    order = np.lexsort((found.subgraph, found.phrase, -found.strength))
    _, first = np.unique(found.phrase[order], return_index=True)
    chosen = order[np.sort(first)[:MOST_PHRASES]]
    return [int(one) for one in chosen if found.strength[one] >= least]
