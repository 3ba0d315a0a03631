"""Retraining: a new generator of the same kind, trained without the rows that a scan holds poisoned. Ours.

The new one has the motifs of the old one, so that it could write the target if it learned to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.train import train_generator
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Retraining(MoleculePurifier):
    """A new generator, trained without the rows held poisoned."""

    def repair(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None,
    ) -> Repaired:
        """See `MoleculePurifier`."""
        dropped = np.unique(np.concatenate([suspect.rows for suspect in suspects]))
        if not len(dropped):
            raise InputError(
                "the scan names a suspicious subgraph, but no row; scan the training pairs, for example with Joint"
            )
        kept = np.setdiff1d(np.arange(len(pairs)), dropped)
        trained = train_generator(
            pairs.subset(kept.tolist()), generator.options, runtime, vocabulary=generator.vocabulary, resume=resume
        )
        return Repaired(
            generator=trained.generator,
            notes=(f"A new generator was trained on {len(kept):,} pairs, without {len(dropped):,} held poisoned.",),
            evidence={"kept": len(kept), "dropped": len(dropped)},
        )
