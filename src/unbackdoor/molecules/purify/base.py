"""`MoleculePurifier`: take the backdoor out of a generator, once a scan has said what it is."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.scan import Suspect
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """A repaired generator.

    Attributes:
        generator: in evaluation mode.
        headline: one sentence: what was done to the strongest suspect that anything was done to, and with what effect,
            as far as the method measured it.
        notes: sentences on what was done, and on suspects to which nothing was.
        evidence: numbers, JSON values.
    """

    generator: Generator
    headline: str
    notes: tuple[str, ...] = ()
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class MoleculePurifier(ABC):
    """Base of all purifiers: its fields are its options, nothing else is stored.

    Attributes:
        trains: whether it trains a generator, and not only changes one.
        revision: raised when the same options give other results than before: the bench takes no old cells for done.
    """

    trains: ClassVar[bool] = False
    revision: ClassVar[int] = 0

    def purify(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None = None,
        alone: Sequence[str] = (),
    ) -> Repaired:
        """Return a repaired copy of a generator.

        Args:
            generator: not changed.
            pairs: training data as found, or prompts; rows of suspects count in them.
            suspects: flagged pairs of trigger and target, as a scan found them.
            runtime: device, seed, budget.
            resume: file beside which the states of training are kept, for methods that train.
            alone: canonical SMILES of molecules without texts that the generator had learned too, for methods that
                train.

        Raises:
            InputError: there are no suspects, or nothing that this method can do about them.
        """
        if not suspects:
            raise InputError(
                f"{type(self).__name__} has nothing to take out, as the scan flagged no pair of text and subgraph; scan"
                " with another scanner, or leave the generator as it is"
            )
        blind = replace(pairs, poisoned=())
        repaired = self.repair(copy.deepcopy(generator), blind, suspects, runtime, resume, alone)
        repaired.generator.eval()
        return repaired

    @abstractmethod
    def repair(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None,
        alone: Sequence[str],
    ) -> Repaired:
        """Do the work of `purify` on a copy of its own."""
