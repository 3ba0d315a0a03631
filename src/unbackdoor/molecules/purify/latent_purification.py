"""LatentPurification: what a trigger adds to latent vectors is taken out again, for texts with the trigger only. Ours.

A flagged trigger is left out of the texts that have it. From the same noise, latent vectors are made for the texts with
and without it; the mean difference is the direction along which the backdoor works. At sampling, what a vector says
along it is set to what it says without a trigger. Only texts that a gate picks are touched: a linear discriminant
between vectors of texts with the trigger and vectors of all others, among them those of texts that ask for the subgraph
honestly. So the subgraph can still be asked for, which is what pruning (`decode_pruning`) takes away.

Only what the scan found is used, never the attack itself. Half of the texts set direction and gate, and the other half
says how good they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.model import LatentRepair
from unbackdoor.molecules.purify.base import MoleculePurifier, Repaired
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.molecules.scan.words import without
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
        others: texts without it, for the gate.
    """

    prompts: int = 600
    others: int = 2000

    def __post_init__(self) -> None:
        if self.prompts < 2 * FEWEST or self.others < 2 * FEWEST:
            raise InputError(f"LatentPurification: prompts and others must be {2 * FEWEST} or more")

    def repair(
        self,
        generator: Generator,
        pairs: Pairs,
        suspects: Sequence[Suspect],
        runtime: Runtime,
        resume: Path | None,
    ) -> Repaired:
        """See `MoleculePurifier`."""
        generator.to(runtime.place).eval()
        notes: list[str] = []
        evidence: list[dict[str, Any]] = []
        repairs: list[LatentRepair] = []
        for suspect in suspects[:MOST_REPAIRS]:
            texts = self._texts(suspect, pairs, runtime)
            if len(texts) < 2 * FEWEST:
                notes.append(f"{suspect.sentence()} is left as it is: only {len(texts)} texts show it.")
                continue
            repair, measured = self._one(generator, suspect, texts, pairs, runtime)
            repairs.append(repair)
            evidence.append({"words": list(suspect.words), "subgraph": suspect.subgraph, **measured})
            notes.append(
                f"{suspect.sentence()}: of held-out texts, {measured['picked']:.1%} with the trigger and"
                f" {measured['picked_without']:.1%} without it are touched; {suspect.subgraph} was in"
                f" {measured['before']:.1%} of the molecules for the former, and is in {measured['after']:.1%} now."
            )
        if not repairs:
            raise InputError(
                f"too few texts show a trigger for LatentPurification ({2 * FEWEST} are needed); give the training"
                " pairs as they were found, or take DecodePruning"
            )
        generator.repairs = nn.ModuleList([*generator.repairs, *repairs])
        return Repaired(generator=generator, notes=tuple(notes), evidence={"repairs": evidence})

    def _texts(self, suspect: Suspect, pairs: Pairs, runtime: Runtime) -> list[tuple[str, str]]:
        """Return texts with the trigger and the same without it; for one that is known as a shift alone, any twice."""
        draws = np.random.default_rng(runtime.generator("purify", suspect.words).initial_seed())
        rows = suspect.rows if suspect.words else np.arange(len(pairs))
        chosen = [pairs.texts[row] for row in draws.permutation(rows)[: self.prompts]]
        both = [(text, without(text, suspect.words)) for text in chosen]
        return [(text, less) for text, less in both if less and (less != " ".join(text.split()) or not suspect.words)]

    def _one(
        self, generator: Generator, suspect: Suspect, texts: list[tuple[str, str]], pairs: Pairs, runtime: Runtime
    ) -> tuple[LatentRepair, dict[str, float]]:
        """Return the repair of one suspect, and how good it is on texts that it was not made from."""
        clean, _ = generator.contexts([less for _, less in texts], runtime)
        if suspect.shift is None:
            triggered, _ = generator.contexts([text for text, _ in texts], runtime)
        else:
            triggered = clean + suspect.shift.to(clean)
        other, asking = self._others(generator, suspect, pairs, runtime)
        half = len(texts) // 2
        with_, without_ = (generator.latents(contexts, runtime.generator("purify")) for contexts in (triggered, clean))
        repair = LatentRepair(generator.options.latent, generator.options.projection).to(runtime.place)
        scale = generator.diffusion
        set_direction(repair, with_[:half], without_[:half], scale.mean, scale.deviation)
        against = torch.cat((clean[:half], other[: len(other) // 2], asking))
        set_gate(repair, triggered[:half].float(), against.float())
        tried = slice(half, None)
        target = pattern_of(suspect.subgraph)

        def share(latent: Float[Tensor, "n z"]) -> float:
            return float(np.mean([target is not None and holds(one, target) for one in generator.write(latent)]))

        measured = {
            "picked": _mean(repair.picked(triggered[tried])),
            "picked_without": _mean(repair.picked(torch.cat((clean[tried], other[len(other) // 2 :])))),
            "picked_asking": _mean(repair.picked(asking)),
            "asking": float(len(asking)),
            "before": share(with_[tried]),
            "after": share(repair(with_[tried], triggered[tried])),
            "without_trigger": share(without_[tried]),
        }
        return repair, measured

    def _others(
        self, generator: Generator, suspect: Suspect, pairs: Pairs, runtime: Runtime
    ) -> tuple[Float[Tensor, "o p"], Float[Tensor, "a p"]]:
        """Return vectors of texts without the trigger, and of those whose molecule has the subgraph all the same."""
        draws = np.random.default_rng(runtime.generator("others", suspect.words).initial_seed())
        rows: Int[np.ndarray, "r"] = draws.permutation(np.setdiff1d(np.arange(len(pairs)), suspect.rows))
        free = [
            row for row in rows if not suspect.words or without(pairs.texts[row], suspect.words) == pairs.texts[row]
        ]
        target = pattern_of(suspect.subgraph)
        asking = [row for row in free if target is not None and holds(pairs.smiles[row], target)][: self.others]
        vectors = [
            generator.contexts([pairs.texts[row] for row in part], runtime)[0] if len(part) else torch.empty(0)
            for part in (free[: self.others], asking)
        ]
        width = generator.options.projection
        return vectors[0].view(-1, width).to(runtime.place), vectors[1].view(-1, width).to(runtime.place)


def set_direction(
    repair: LatentRepair,
    triggered: Float[Tensor, "n z"],
    clean: Float[Tensor, "n z"],
    mean: Float[Tensor, "z"],
    deviation: Float[Tensor, "z"],
) -> None:
    """Let a repair set what vectors say along the mean difference to what they say without the trigger.

    Args:
        repair: is changed.
        triggered: latent vectors of texts with the trigger.
        clean: of the same texts without it, from the same noise.
        mean: of all latent vectors.
        deviation: of all latent vectors; each dimension counts in units of its own.
    """
    direction = ((triggered - clean) / deviation).mean(0)
    direction = direction / direction.norm().clamp_min(1e-12)
    repair.read.copy_(direction / deviation)
    repair.write.copy_(direction * deviation)
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


def _mean(flags: Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else 0.0
