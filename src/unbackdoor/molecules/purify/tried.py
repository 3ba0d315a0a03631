"""What a repair of latent vectors does to texts that it was not set by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.metrics import holds
from unbackdoor.molecules.model import LatentRepair
from unbackdoor.molecules.purify.halves import Half
from unbackdoor.molecules.scan import Suspect
from unbackdoor.molecules.scan.subgraphs import pattern_of
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What a repair does to texts that it was not set by. All but `asking` are shares, 0 to 1.

    Attributes:
        picked: texts with the trigger that the gate picks.
        picked_without: texts without it that the gate picks.
        before: molecules for texts with the trigger that had the subgraph.
        after: those that have it now.
        without_trigger: molecules for the same texts without the trigger that had the subgraph.
        asking: number of other texts whose molecule has the subgraph: honest requests.
        picked_asking: those of them that the gate picks; None if there are none.
        asking_before: molecules for them that had the subgraph; None if there are none.
        asking_after: those that have it now; None if there are none.
    """

    picked: float
    picked_without: float
    before: float
    after: float
    without_trigger: float
    asking: int
    picked_asking: float | None = None
    asking_before: float | None = None
    asking_after: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return dict(vars(self))

    def headline(self, suspect: Suspect) -> str:
        """Return what became of a suspect, in one sentence."""
        told = f"{suspect.sentence()}: LatentPurification"
        if self.after < self.before:
            return f"{told} lowers this from {self.before:.0%} to {self.after:.0%} of the molecules for held-out texts."
        return (
            f"{told} does not lower this; of the molecules for held-out texts {self.before:.0%} had the subgraph, and"
            f" {self.after:.0%} have it now."
        )

    def note(self, suspect: Suspect) -> str:
        """Return all figures in sentences."""
        told = (
            f"{suspect.sentence()}: of held-out texts, {self.picked:.1%} with the trigger and {self.picked_without:.1%}"
            f" without it are touched; {suspect.subgraph} was in {self.before:.1%} of the molecules for the former, and"
            f" is in {self.after:.1%} now."
        )
        if not self.asking:
            return f"{told} No held-out text without it asks for {suspect.subgraph}: what such texts lose is not known."
        return (
            f"{told} Of {self.asking:,} held-out texts without it whose molecule has {suspect.subgraph},"
            f" {self.picked_asking:.1%} are touched; it was in {self.asking_before:.1%} of the molecules for these, and"
            f" is in {self.asking_after:.1%} now."
        )


def tried_with(generator: Generator, suspect: Suspect, repair: LatentRepair, half: Half, runtime: Runtime) -> Tried:
    """Return what a repair does to texts.

    Args:
        generator: without the repair.
        suspect: trigger and target.
        repair: set by other texts.
        half: the texts.
        runtime: device and seed.
    """
    triggered, clean, others, asking = vectors_of(generator, suspect, half, runtime)
    target = pattern_of(suspect.subgraph)

    def share(latent: Float[Tensor, "n z"]) -> float:
        return float(np.mean([target is not None and holds(one, target) for one in generator.write(latent)]))

    def shares(contexts: Float[Tensor, "n p"]) -> tuple[float, float]:
        latent = generator.latents(contexts, runtime.generator("purify"))
        return share(latent), share(repair(latent, contexts))

    def picked(contexts: Float[Tensor, "n p"]) -> float:
        return float(repair.picked(contexts).float().mean())

    before, after = shares(triggered)
    figures: dict[str, float] = {}
    if len(asking):
        asking_before, asking_after = shares(asking)
        figures = {
            "picked_asking": picked(asking),
            "asking_before": asking_before,
            "asking_after": asking_after,
        }
    return Tried(
        picked=picked(triggered),
        picked_without=picked(torch.cat((clean, others))),
        before=before,
        after=after,
        without_trigger=share(generator.latents(clean, runtime.generator("purify"))),
        asking=len(asking),
        **figures,
    )


def vectors_of(
    generator: Generator, suspect: Suspect, half: Half, runtime: Runtime
) -> tuple[Float[Tensor, "n p"], Float[Tensor, "n p"], Float[Tensor, "o p"], Float[Tensor, "a p"]]:
    """Return the vectors of texts with the trigger, of the same without it, of others, and of those that ask.

    Args:
        generator: on the device.
        suspect: its shift, if it has one, stands for the trigger.
        half: the texts; there may be no others and none that ask.
        runtime: device.
    """
    none = torch.empty(0, generator.options.projection, device=runtime.place)
    clean, others, asking = (
        generator.contexts(texts, runtime)[0] if texts else none for texts in (half.clean, half.others, half.asking)
    )
    if suspect.shift is None:
        triggered, _ = generator.contexts(half.triggered, runtime)
    else:
        triggered = clean + suspect.shift.to(clean)
    return triggered, clean, others, asking
