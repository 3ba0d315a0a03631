"""`TriggerDistribution`: the triggers that lead to one class, as MESA's staircase of generators.

Let s(v) be the share of images that the trigger v leads to the class. Sub-model i is to be uniform where s(v) is at
least beta_i, so its density is exp(-h_i) there, h_i its entropy. With ascending betas and beta_0 = 0 the sum

    sum_i (beta_i - beta_(i-1)) 1[s(v) >= beta_i] = sum_i (beta_i - beta_(i-1)) exp(h_i) density_i(v)

is a staircase below s(v). Hence the weights of the sub-models: gamma_i ~ (beta_i - beta_(i-1)) exp(h_i).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unbackdoor.scan.stacked import NOISE, Generators

CENTRES = 2048
"""Triggers of each sub-model around which a density is computed."""
TYPICAL = 256
"""Triggers of which the one in the middle is typical."""


def staircase_weights(betas: Sequence[float], entropies: Float[Tensor, "s"]) -> Float[Tensor, "s"]:
    """Return the weights of sub-models whose mixture is the staircase; they add up to 1.

    Args:
        betas: thresholds of the sub-models, different ones above 0, in any order.
        entropies: of the sub-models, up to a constant; nats.
    """
    below = [max((other for other in betas if other < beta), default=0.0) for beta in betas]
    steps = torch.tensor([beta - lower for beta, lower in zip(betas, below)]).to(entropies)
    return (steps.log() + entropies).softmax(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class TriggerDistribution:
    """Patches that lead images to one class, wherever on them they stand.

    Attributes:
        target: the class.
        betas: threshold of each sub-model.
        generators: the sub-models, in evaluation mode, on the CPU.
        noise: standard deviation of the Gaussian noise with which triggers were trained, pixel units, above 0.
        information: between a sub-model's input and its trigger with noise, a lower bound; nats.
        success: share of clean images of other classes that each sub-model's triggers led to the class, 0 to 1.
    """

    target: int
    betas: tuple[float, ...]
    generators: Generators
    noise: float
    information: Float[Tensor, "s"]
    success: Float[Tensor, "s"]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a trigger."""
        return self.generators.shape

    @property
    def entropies(self) -> Float[Tensor, "s"]:
        """Differential entropy of each sub-model's triggers with noise, as far as the information is known; nats.

        Given its input, a trigger differs by the noise alone, so that I(input; trigger) = h(trigger) - h(noise).
        """
        return self.information + math.prod(self.shape) / 2 * math.log(2 * math.pi * math.e * self.noise**2)

    @property
    def weights(self) -> Float[Tensor, "s"]:
        """Shares of the sub-models in the mixture."""
        return staircase_weights(self.betas, self.entropies)

    @torch.no_grad()
    def sample(self, count: int, draws: torch.Generator, of: int | None = None) -> Float[Tensor, "n c p p"]:
        """Draw triggers, in [0, 1], without noise.

        Args:
            count: of triggers.
            draws: source of randomness, on the CPU.
            of: number of a sub-model; None draws from the mixture.
        """
        every = self.generators(torch.randn(count, NOISE, generator=draws))
        if of is not None:
            chosen: Tensor = every[of]
            return chosen
        rows: Int[Tensor, "n"] = torch.multinomial(self.weights, count, replacement=True, generator=draws)
        mixed: Tensor = every[rows, torch.arange(count)]
        return mixed

    @torch.no_grad()
    def log_density(
        self, triggers: Float[Tensor, "n c p p"], draws: torch.Generator, of: int | None = None
    ) -> Float[Tensor, "n"]:
        """Return the logarithm of the density of triggers with noise, a mixture of Gaussians around drawn triggers.

        In this many dimensions the Gaussians hardly overlap: where triggers are diverse it is too low, the more so the
        farther from those that were drawn. It compares triggers; it is no probability.

        Args:
            triggers: to look at.
            draws: source of the triggers around which it is computed.
            of: number of a sub-model; None is the mixture.
        """
        centres = self.generators(torch.randn(CENTRES, NOISE, generator=draws)).flatten(2)
        flat = triggers.flatten(1)
        distances = torch.cdist(flat.expand(len(centres), -1, -1), centres).square()
        constant = flat.shape[1] / 2 * math.log(2 * math.pi * self.noise**2)
        each = (-distances / (2 * self.noise**2)).logsumexp(2) - math.log(CENTRES) - constant
        if of is not None:
            return each[of]
        return (each + self.weights.log()[:, None]).logsumexp(0)

    def typical(self, draws: torch.Generator) -> Float[Tensor, "c p p"]:
        """Return a trigger of the sub-model with the largest threshold: the one that is nearest to their mean."""
        triggers = self.sample(TYPICAL, draws, of=max(range(len(self.betas)), key=self.betas.__getitem__))
        return triggers[(triggers - triggers.mean(0)).flatten(1).norm(dim=1).argmin()]

    def only(self, number: int) -> TriggerDistribution:
        """Return the distribution of one sub-model alone."""
        state = {name: value[number : number + 1] for name, value in self.generators.state_dict().items()}
        return replace(
            self,
            betas=(self.betas[number],),
            generators=generators_of(state, self.shape),
            information=self.information[number : number + 1],
            success=self.success[number : number + 1],
        )

    def state(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        return {
            "target": self.target,
            "betas": list(self.betas),
            "generators": self.generators.state_dict(),
            "shape": list(self.shape),
            "noise": self.noise,
            "information": self.information,
            "success": self.success,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> TriggerDistribution:
        """Make it again from what `state` returned."""
        channels, height, width = state["shape"]
        return cls(
            target=state["target"],
            betas=tuple(state["betas"]),
            generators=generators_of(state["generators"], (channels, height, width)),
            noise=state["noise"],
            information=state["information"],
            success=state["success"],
        )


def generators_of(state: dict[str, Tensor], shape: tuple[int, int, int]) -> Generators:
    """Return generators in evaluation mode with these weights, on the CPU."""
    rows, _, hidden = state["layers.0.weight"].shape
    made = Generators(rows, shape, hidden, torch.Generator())
    made.load_state_dict({name: value.detach().cpu().clone() for name, value in state.items()})
    return made.eval().requires_grad_(False)
