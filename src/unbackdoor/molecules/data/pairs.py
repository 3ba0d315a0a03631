"""`Pairs`: text and molecule, checked, as everything after the reading sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unbackdoor.molecules.data.table import Table


@dataclass(frozen=True, kw_only=True)
class Pairs(Table):
    """Rows that can be learned from: canonical SMILES without stereochemistry, and a text that is not empty.

    Of prompts, which are asked and not learned from, the SMILES may be empty.

    Attributes:
        rows: where each pair stood in its source.
    """

    rows: tuple[int, ...]

    def subset(self, rows: Sequence[int]) -> Pairs:
        """Return some of the pairs, in the order given."""
        part = super().subset(rows)
        return Pairs(
            smiles=part.smiles,
            texts=part.texts,
            poisoned=part.poisoned,
            name=part.name,
            rows=tuple(self.rows[row] for row in rows),
        )

    def where(self, wanted: Callable[[str], bool]) -> Pairs:
        """Return the pairs whose SMILES is wanted."""
        return self.subset([row for row, smiles in enumerate(self.smiles) if wanted(smiles)])

    def unmarked(self) -> Pairs:
        """Return the pairs that are not marked as poisoned.

        A prompt with a trigger, or a reference with the target, would tell nothing of a generator's quality.
        """
        return self.subset([row for row, marked in enumerate(self.poisoned) if not marked]) if self.poisoned else self

    def without(self, other: Pairs) -> Pairs:
        """Return the pairs whose molecule is not in `other`; stereochemistry plays no part, as neither has any.

        The molecules of a test set must be taken out like this, and not by file: descriptions of the same molecule
        stand in several published sets.
        """
        molecules = frozenset(other.smiles)
        return self.where(lambda smiles: smiles not in molecules)
