"""Joint: TwinDifference and ExogenousAssociation, each of which sees what the other is blind to. Ours."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, merged
from unbackdoor.molecules.scan.exogenous_association import ExogenousAssociation
from unbackdoor.molecules.scan.twin_difference import TwinDifference
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Joint(MoleculeScanner):
    """TwinDifference and ExogenousAssociation together, with their own options."""

    revision: ClassVar[int] = ExogenousAssociation.revision

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        return self.joined(*(one.inspect(pairs, runtime, None) for one in (TwinDifference(), ExogenousAssociation())))

    def joined(self, twins: MoleculeFinding, association: MoleculeFinding) -> MoleculeFinding:
        """Return the answer that two scans of the same pairs make together."""
        suspects = merged([*twins.suspects, *association.suspects], twins.rows)
        found = self.verdict(suspects, twins.rows, 0, parts=[twins.reason, association.reason])
        if association.inconclusive and not found.flagged:
            # Twins alone are no proof of innocence: replacing rows leaves none.
            return replace(found, inconclusive=True, reason=association.reason)
        return found
