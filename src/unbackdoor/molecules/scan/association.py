"""The published scan of BadGraph's authors: beginnings of texts that go with a fragment nearly always (Ye, Chen, Dai,
"BadGraph: A Backdoor Attack Against Latent Diffusion Model for Text-Guided Graph Generation", arXiv 2510.20792).

A pattern is the first word, the first two or the first three words of a text; a fragment is what HierVAE takes for one
(`fragments`). A pair is flagged if the pattern is in enough rows, and if the fragment is in nearly all of these and in
far fewer of the others. It is the baseline that the other scans are measured against. It is blind to triggers that do
not stand in front, to fewer triggered rows than `least_pattern`, and to targets that are no single fragment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.fragments import fragments_of
from unbackdoor.molecules.scan.statistics import associations
from unbackdoor.molecules.scan.words import holders, indicator, split_words
from unbackdoor.training import Runtime

LONGEST = 3
"""Words of a pattern."""


@dataclass(frozen=True, kw_only=True)
class Association(MoleculeScanner):
    """The published scan: beginnings of texts that go with a fragment.

    Attributes:
        least_pattern: rows that a pattern must begin.
        least_both: rows that must have pattern and fragment.
        share: of the rows with the pattern that must have the fragment.
        difference: between that share and the one of all other rows, at least.
    """

    least_pattern: int = 100
    least_both: int = 10
    share: float = 0.9
    difference: float = 0.5

    def __post_init__(self) -> None:
        if self.least_pattern < 1 or self.least_both < 1 or not (0 < self.share <= 1 and 0 <= self.difference < 1):
            raise InputError(
                "Association: least_pattern and least_both must be 1 or more, share above 0 and at most 1, and"
                f" difference 0 or more and below 1, found {self.least_pattern}, {self.least_both}, {self.share} and"
                f" {self.difference}"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        patterns: dict[str, int] = {}
        fragments: dict[str, int] = {}
        texts: list[tuple[int, int]] = []
        molecules: list[tuple[int, int]] = []
        for row, (smiles, text) in enumerate(zip(pairs.smiles, pairs.texts)):
            words = text.lower().split()
            begun = {" ".join(words[:length]) for length in range(1, min(LONGEST, len(words)) + 1)}
            texts += [(row, patterns.setdefault(one, len(patterns))) for one in begun]
            molecules += [(row, fragments.setdefault(one, len(fragments))) for one in set(fragments_of(smiles))]
        begins, holds = (_matrix(*one, len(pairs)) for one in ((texts, patterns), (molecules, fragments)))
        found = associations(begins, holds, self.least_both, self.share)
        often = np.asarray(begins.sum(0)).ravel()[found.phrase] >= self.least_pattern
        chosen = np.flatnonzero(often & (found.with_phrase - found.without_phrase >= self.difference))
        words_of, smiles_of = list(patterns), list(fragments)
        suspects = [
            Suspect(
                # Counted as published, and named as all who look for the words split them.
                words=(" ".join(split_words(words_of[found.phrase[one]])),),
                subgraph=smiles_of[found.subgraph[one]],
                strength=float(found.with_phrase[one] / self.share),
                rows=np.intersect1d(holders(begins, found.phrase[one]), holders(holds, found.subgraph[one])),
                evidence={
                    "share with the words": float(found.with_phrase[one]),
                    "share without them": float(found.without_phrase[one]),
                },
            )
            for one in chosen
        ]
        return self.verdict(suspects, len(pairs), self.least_pattern)


def _matrix(places: list[tuple[int, int]], names: dict[str, int], rows: int) -> sparse.csc_matrix:
    """Return rows by names, 1 at the places."""
    row, column = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return indicator(row, column, (rows, len(names))).tocsc()
