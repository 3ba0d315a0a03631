"""LatentPurification: what a trigger adds to latent vectors is taken out again, for texts with the trigger only. Ours.

A flagged trigger is left out of the texts that have it. From the same noise, latent vectors are made for the texts with
and without it; the mean difference is the direction along which the backdoor works. At sampling, vectors are changed
along it until what tells the trigger says what it says without one. Only texts that a gate picks are touched: a linear
discriminant between vectors of texts with the trigger and vectors of all others, among them those of texts that ask for
the subgraph honestly. So the subgraph can still be asked for, which is what pruning (`decode_pruning`) takes away.

Only what the scan found is used, never the attack itself. Half of the texts of each kind set direction and gate, and
the other half says how good they are (`tried`); no text is in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from sklearn.covariance import ledoit_wolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import LatentRepair
from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.purify.halves import Half, halves_of
from unbackdoor.molecules.purify.tried import tried_with, vectors_of
from unbackdoor.molecules.scan import Suspect
from unbackdoor.training import Runtime

FEWEST = 4
"""Texts with a trigger, without which neither direction nor gate can be estimated."""

MOST_REPAIRS = 10
"""Suspects that are repaired; the strongest."""

EDGES = (0.99, 0.01)
"""Quantiles of the texts without and with the trigger, between which the gate's threshold lies."""


@dataclass(frozen=True, kw_only=True)
class LatentPurification(MoleculePurifier):
    """What a trigger adds to latent vectors is taken out again, for texts with the trigger only.

    Attributes:
        prompts: texts with each trigger that are used, half of them for checking; drawn by the seed.
        others: other texts that are used, and texts that ask for the subgraph, at most; half of them for checking.
    """

    # Since what tells the trigger is read against the spread of the vectors.
    revision: ClassVar[int] = 1

    prompts: int = 600
    others: int = 2000

    def __post_init__(self) -> None:
        if self.prompts < 2 * FEWEST or self.others < 2 * FEWEST:
            raise InputError(
                f"LatentPurification: prompts and others must be {2 * FEWEST} or more,"
                f" found {self.prompts} and {self.others}"
            )

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
        generator.to(runtime.place).eval()
        headlines: list[str] = []
        notes: list[str] = []
        evidence: list[dict[str, Any]] = []
        repairs: list[LatentRepair] = []
        for suspect in suspects[:MOST_REPAIRS]:
            fitted, held_out = halves_of(suspect, pairs, self.prompts, self.others, runtime)
            if len(fitted.clean) < FEWEST:
                texts = len(fitted.clean) + len(held_out.clean)
                notes.append(f"{suspect.sentence()}: nothing is done about it, as only {texts} texts show it.")
                continue
            repair = _fitted(generator, suspect, fitted, runtime)
            tried = tried_with(generator, suspect, repair, held_out, runtime)
            repairs.append(repair)
            evidence.append({"words": list(suspect.words), "subgraph": suspect.subgraph, **tried.to_json()})
            headlines.append(tried.headline(suspect))
            notes.append(tried.note(suspect))
        if not repairs:
            raise InputError(
                f"too few texts show a trigger for LatentPurification ({2 * FEWEST} are needed); give the training"
                " pairs as they were found, or take DecodePruning"
            )
        weaker = len(suspects[MOST_REPAIRS:])
        if weaker:
            notes.append(f"Nothing is done about {weaker:,} weaker pairs: the {MOST_REPAIRS} strongest are repaired.")
        generator.repairs = nn.ModuleList([*generator.repairs, *repairs])
        return Repaired(
            generator=generator,
            headline=headlines[0],
            notes=tuple(notes),
            evidence={"repairs": evidence, "left": len(suspects) - len(repairs)},
        )


def _fitted(generator: Generator, suspect: Suspect, half: Half, runtime: Runtime) -> LatentRepair:
    """Return the repair of one suspect, set by texts."""
    triggered, clean, others, asking = vectors_of(generator, suspect, half, runtime)
    with_, without_ = (generator.latents(contexts, runtime.generator("purify")) for contexts in (triggered, clean))
    repair = LatentRepair(generator.options.latent, generator.options.projection).to(runtime.place)
    scale = generator.diffusion
    set_direction(repair, with_, without_, scale.mean, scale.deviation)
    set_gate(repair, triggered.float(), torch.cat((clean, others, asking)).float())
    return repair


def set_direction(
    repair: LatentRepair,
    triggered: Float[Tensor, "n z"],
    clean: Float[Tensor, "n z"],
    mean: Float[Tensor, "z"],
    deviation: Float[Tensor, "z"],
) -> None:
    """Let a repair set what tells the trigger to what is said without it, changing vectors along the mean difference.

    What tells it is read against the spread of the vectors: texts differ along the mean difference too, and a vector
    that says little there may have the trigger all the same. No linear map then tells the kinds any more, at the least
    change (LEACE: Belrose et al., "LEACE: Perfect Linear Concept Erasure in Closed Form", NeurIPS 2023).

    Args:
        repair: is changed.
        triggered: latent vectors of texts with the trigger.
        clean: of the same texts without it, from the same noise.
        mean: of all latent vectors.
        deviation: of all latent vectors; each dimension counts in units of its own.
    """
    both = [one.double().cpu() / deviation.double().cpu() for one in (triggered, clean)]
    direction = both[0].mean(0) - both[1].mean(0)
    direction = direction / direction.norm().clamp_min(1e-12)
    # Within the kinds; of few texts it is nearly round.
    spread, _ = ledoit_wolf(torch.cat([one - one.mean(0) for one in both]).numpy(), assume_centered=True)
    telling = torch.from_numpy(np.linalg.pinv(spread)) @ direction
    telling = telling / (telling @ direction).clamp_min(1e-12)
    repair.read.copy_(telling.to(deviation) / deviation)
    repair.write.copy_(direction.to(deviation) * deviation)
    repair.level.copy_((clean @ repair.read).mean())


def set_gate(repair: LatentRepair, triggered: Float[Tensor, "n p"], others: Float[Tensor, "m p"]) -> None:
    """Let a repair pick the texts with the trigger, by a linear discriminant with a shrunk covariance.

    Args:
        repair: is changed.
        triggered: vectors of texts with the trigger.
        others: vectors of texts without it.
    """
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    vectors = torch.cat((triggered, others)).double().cpu().numpy()
    discriminant.fit(vectors, np.arange(len(vectors)) < len(triggered))
    repair.gate.copy_(torch.from_numpy(discriminant.coef_[0]))
    high, low = (others @ repair.gate).quantile(EDGES[0]), (triggered @ repair.gate).quantile(EDGES[1])
    repair.threshold.copy_((high + low) / 2)
