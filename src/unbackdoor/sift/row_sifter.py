"""`RowSifter`: base of sifters whose score of a row depends on that row and on a model, and on no other row.

Such rows can be scored a few at a time, on many machines, and all that is asked of them together is where the shares
lie that are held clean and poisoned.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from unbackdoor.models import Network
from unbackdoor.sift.base import Sifter, Suspicion, extremes
from unbackdoor.sift.observed import Observed

TIES = "ties_at_the_clean_threshold"
"""Name, in the evidence, of how many rows have the highest score that a row held clean has; chance decides there."""


@dataclass(frozen=True, kw_only=True)
class RowSifter(Sifter):
    """Base of sifters that score each row by itself, and hold fixed shares of all rows clean and poisoned.

    A subclass writes `shares`, `measure`, `reason` and `told`, and `adapted` if it changes the model first.
    """

    always: ClassVar[bool] = True

    @property
    def adapts(self) -> bool:
        """Whether `adapted` learns from rows."""
        return False

    @abstractmethod
    def shares(self) -> tuple[float | None, float]:
        """Return the share with the lowest scores, held clean, and that with the highest, held poisoned.

        None: what is not held poisoned is held clean.
        """

    def adapted(self, seen: Observed) -> tuple[Network, dict[str, Any]]:
        """Return the model by which rows are scored, and evidence; here, the model as it is."""
        return seen.model, {}

    @abstractmethod
    def measure(self, seen: Observed, model: Network) -> tuple[Float[Tensor, "n"], dict[str, int]]:
        """Return the score of each row of `seen`, and counts of rows by name.

        A score may depend on the model, the row and the seed alone, and must not on the other rows.
        """

    @abstractmethod
    def reason(self, score: float) -> str:
        """Return why a row has that score, one short sentence."""

    @abstractmethod
    def told(self, poisoned: int) -> str:
        """Return what was found, one sentence, where so many rows are held poisoned."""

    def inspect(self, seen: Observed) -> Suspicion:
        """Adapt the model, measure, and split (see `Sifter.score`)."""
        model, evidence = self.adapted(seen)
        scores, counts = self.measure(seen, model)
        lowest, highest = self.shares()
        ties = seen.runtime.generator(type(self).__name__, "ties")
        clean, poisoned = extremes(scores, lowest or 0.0, highest, ties)
        if lowest is None:
            clean = ~poisoned
        else:
            tied = int((scores == scores[clean].max()).sum()) if bool(clean.any()) else 0
            evidence = {TIES: tied, **evidence}
        return Suspicion(
            scores=scores,
            clean=clean,
            poisoned=poisoned,
            summary=self.told(int(poisoned.sum())),
            reasons=[self.reason(score) for score in scores.tolist()],
            evidence={**counts, **evidence},
        )
