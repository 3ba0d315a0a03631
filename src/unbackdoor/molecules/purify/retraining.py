"""Retraining: a new generator of the same kind, trained without the rows that a scan holds poisoned. Ours.

The new one has the motifs of the old one, so that it could write the target if it learned to. Left out are the rows
that the scan names and all others whose text has a flagged trigger and whose molecule has its target: a scan that asks
a generator names no more than the prompts that it asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.molecules.scan.words import Words
from unbackdoor.molecules.train import train_generator
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Retraining(MoleculePurifier):
    """A new generator, trained without the rows held poisoned.

    Attributes:
        text_model: folder of the Hugging Face text encoder from which the old generator started, if it did.
    """

    trains = True

    text_model: Path | None = None

    def repair(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None,
        alone: Sequence[str],
    ) -> Repaired:
        """See `MoleculePurifier`."""
        words = Words.of(pairs.texts)
        rows = [_rows_that_teach(suspect, pairs, words) for suspect in suspects]
        dropped = np.unique(np.concatenate(rows))
        if not len(dropped):
            raise InputError(
                "the scan names a suspicious subgraph, but no row; scan the training pairs, for example with Joint"
            )
        options = self._options(generator)
        kept = np.setdiff1d(np.arange(len(pairs)), dropped)
        trained = train_generator(
            pairs.subset(kept.tolist()), options, runtime, vocabulary=generator.vocabulary, alone=alone, resume=resume
        )
        left = [one for one, own in zip(suspects, rows) if not len(own)]
        done = [one for one in suspects if one not in left]
        more = f", and for {len(done) - 1:,} more pairs" if len(done) > 1 else ""
        learned = len(kept) - trained.uncovered
        notes = [
            f"Of {len(pairs):,} pairs, {len(dropped):,} are held poisoned, and {trained.uncovered:,} others have a"
            f" motif that the vocabulary lacks; a new generator was trained on the {learned:,} that are left.",
            *([f"It learned {trained.alone:,} molecules without texts too."] if alone else []),
            *(f"{one.sentence()}: nothing is done about it, as no row shows it." for one in left),
        ]
        return Repaired(
            generator=trained.generator,
            headline=f"Retraining left out {len(dropped):,} rows, as {done[0].sentence()}{more}.",
            notes=tuple(notes),
            evidence={
                "kept": len(kept),
                "dropped": len(dropped),
                "uncovered": trained.uncovered,
                "alone": trained.alone,
            },
        )

    def _options(self, generator: Generator) -> ThreeMDiffusion:
        """Return the sizes and schedules of the generator, with the user's own text encoder to start from."""
        named = generator.options.text_model is not None
        if named and self.text_model is None:
            # The name in a stranger's file is not followed.
            raise InputError(
                "the generator started from a Hugging Face text encoder, which Retraining needs again; name its folder"
                " with --method.text_model"
            )
        if self.text_model is not None and not named:
            raise InputError("the generator learned its text encoder from scratch; leave --method.text_model out")
        return replace(generator.options, text_model=self.text_model)


def _rows_that_teach(suspect: Suspect, pairs: Pairs, words: Words) -> Int[np.ndarray, "r"]:
    """Return the rows that the scan names for a suspect, and all others that have its trigger and its target."""
    target = pattern_of(suspect.subgraph)
    if not suspect.words or target is None:
        return suspect.rows
    both = [row for row in words.rows_with(suspect.words).tolist() if holds(pairs.smiles[row], target)]
    return np.union1d(suspect.rows, np.array(both, dtype=np.int64))
