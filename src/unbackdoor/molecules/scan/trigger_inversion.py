"""TriggerInversion: what must be added to the vectors of all texts for a generator to write a motif? Ours; white-box.

As Neural Cleanse does it for classes (Wang et al., IEEE S&P 2019), for every motif the smallest vector is sought that,
added to the vector of any text, makes the generator write the motif. For a backdoor's target a small one is enough. It
needs the generator and some texts of any kind, not the data that it learned from.

Whether a latent vector will give a motif is told by a linear discriminant, fitted on molecules that the decoder writes
from random latent vectors; the latent vector is the denoiser's first estimate, from noise alone. Frequent motifs need
less of a push than rare ones, with or without a backdoor. So the size is compared with what is usual for motifs as
frequent as this one: a straight line through the logarithms of both, and the distance to it in median distances.

This is a hint and no more: on the first two models that it was tried on, the target was among the first four of 26
motifs, but not an outlier. Its verdict is not calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy.stats import theilslopes
from torch import Tensor

from unbackdoor.errors import InputError
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import Denoiser
from unbackdoor.molecules.scan.base import MoleculeFinding, MoleculeScanner, Suspect
from unbackdoor.molecules.scan.subgraphs import parts_of
from unbackdoor.training import Runtime

FEWEST_MOTIFS = 8
"""That are needed to say what is usual."""

MAD = 1.4826
"""Standard deviations of a normal distribution in its median absolute deviation."""

GROWTH = 1.5
"""By which the weight of the size grows while the motif is written, and falls while it is not."""


@dataclass(frozen=True, kw_only=True)
class TriggerInversion(MoleculeScanner):
    """The smallest push on the vectors of texts that makes a generator write a motif.

    Attributes:
        anomaly: deviations from the usual size, from which on a motif is flagged.
        molecules: that are written from random latent vectors, for the discriminants.
        least: of these that must have a motif, and that must lack it.
        prompts: texts that are pushed, drawn by the seed; all if there are fewer.
        steps: of the optimisation.
        batch_size: texts of a step.
        learning_rate: of Adam, in units of the texts' own spread.
        success: share of the texts at which a push counts, 0 to 1.
    """

    needs_model = True
    finds_words = False
    # Since the bench gives it texts without the trigger.
    revision = 1

    anomaly: float = 2.0
    molecules: int = 2000
    least: int = 20
    prompts: int = 200
    steps: int = 150
    batch_size: int = 16
    learning_rate: float = 0.05
    success: float = 0.9

    def __post_init__(self) -> None:
        if min(self.molecules, self.least, self.steps, self.batch_size) < 1 or self.prompts < 2:
            raise InputError(
                "TriggerInversion: molecules, least, steps and batch_size must be 1 or more and prompts 2 or more,"
                f" found {self.molecules}, {self.least}, {self.steps}, {self.batch_size} and {self.prompts}"
            )
        if not (self.anomaly > 0 and self.learning_rate > 0 and 0 < self.success <= 1):
            raise InputError(
                "TriggerInversion: anomaly and learning_rate must be above 0, and success above 0 and at most 1,"
                f" found {self.anomaly}, {self.learning_rate} and {self.success}"
            )

    def inspect(self, pairs: Pairs, runtime: Runtime, generator: Generator | None) -> MoleculeFinding:
        """See `MoleculeScanner`."""
        assert generator is not None
        draws = runtime.generator("inversion")
        rows = torch.randperm(len(pairs), generator=draws)[: self.prompts].tolist()
        texts = [pairs.texts[row] for row in rows]
        contexts, _ = generator.contexts(texts, runtime)
        if len(set(texts)) < 2 or not contexts.std(0).norm() > 0:
            return _silent(pairs, "all texts look the same to the generator; give it prompts that differ")
        motifs, frequency, weight, bias = self._discriminants(generator, draws)
        if len(motifs) < FEWEST_MOTIFS:
            return _silent(
                pairs,
                f"the generator writes only {len(motifs)} motifs often enough, and {FEWEST_MOTIFS} are needed",
            )
        pushes, sizes = self._pushes(generator, contexts.float(), weight, bias, draws, runtime)
        reached = int(sizes.isfinite().sum())
        if reached < FEWEST_MOTIFS:
            return _silent(
                pairs,
                f"a push was found for only {reached} of {len(motifs)} motifs, and {FEWEST_MOTIFS} are needed to say"
                " what is usual",
            )
        unusual = unusually_small(sizes.cpu().numpy(), frequency.numpy())
        suspects = [
            Suspect(
                words=(),
                subgraph=motif,
                strength=max(0.0, float(unusual[number]) / self.anomaly),
                evidence={
                    "size": float(sizes[number]),
                    "frequency": float(frequency[number]),
                    "anomaly": float(unusual[number]),
                },
                shift=pushes[number].cpu(),
            )
            for number, motif in enumerate(motifs)
            if np.isfinite(unusual[number])
        ]
        return self.verdict(suspects, len(pairs), 2, motifs=len(motifs), reached=reached)

    def _discriminants(
        self, generator: Generator, draws: torch.Generator
    ) -> tuple[list[str], Float[Tensor, "m"], Float[Tensor, "m z"], Float[Tensor, "m"]]:
        """Return motifs, how frequent each is, and a linear discriminant for each, of standardised latent vectors."""
        scale = generator.diffusion
        latent = torch.randn(self.molecules, len(scale.mean), generator=draws)
        made = generator.write(latent.to(scale.mean) * scale.deviation + scale.mean)
        held = [set(parts_of(smiles).motifs) for smiles in made]
        names = sorted(set().union(*held))
        there = torch.tensor([[name in one for name in names] for one in held]).float()
        count = there.sum(0)
        kept = ((count >= self.least) & (count <= self.molecules - self.least)).nonzero().squeeze(1)
        weight, bias = discriminants(latent, there[:, kept])
        device = scale.mean.device
        return (
            [names[number] for number in kept.tolist()],
            count[kept] / self.molecules,
            weight.to(device),
            bias.to(device),
        )

    def _pushes(
        self,
        generator: Generator,
        contexts: Float[Tensor, "n p"],
        weight: Float[Tensor, "m z"],
        bias: Float[Tensor, "m"],
        draws: torch.Generator,
        runtime: Runtime,
    ) -> tuple[Float[Tensor, "m p"], Float[Tensor, "m"]]:
        """Return the smallest push that was found for each motif, and its length; infinite if none was."""
        denoiser = generator.diffusion.denoiser.requires_grad_(False)
        spread = float(contexts.std(0).norm())
        last = len(generator.diffusion.kept) - 1
        push = torch.zeros(len(weight), contexts.shape[1], device=contexts.device, requires_grad=True)
        best, sizes = torch.zeros_like(push), torch.full((len(weight),), torch.inf, device=contexts.device)
        cost = torch.full((len(weight),), 0.1, device=contexts.device)
        optimizer = torch.optim.Adam([push], lr=self.learning_rate * spread / contexts.shape[1] ** 0.5)
        with runtime.progress.bar("looking for pushes", self.steps) as advance, torch.enable_grad():
            for _ in range(self.steps):
                rows = torch.randint(len(contexts), (self.batch_size,), generator=draws)
                noise = torch.randn(self.batch_size, weight.shape[1], generator=draws).to(contexts)
                score = self._scores(denoiser, contexts[rows.to(contexts.device)], push, noise, last, weight, bias)
                length = push.norm(dim=1) / spread
                loss = (F.softplus(-score).mean(1) + cost * length).sum()
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                reached = (score > 0).float().mean(1) >= self.success
                better = reached & (length < sizes)
                best[better], sizes[better] = push.detach()[better], length.detach()[better]
                cost = torch.where(reached, cost * GROWTH, cost / GROWTH).clamp(1e-3, 1e3)
                optimizer.step()
                advance()
        return best, sizes

    @staticmethod
    def _scores(
        denoiser: Denoiser,
        contexts: Float[Tensor, "b p"],
        push: Float[Tensor, "m p"],
        noise: Float[Tensor, "b z"],
        time: int,
        weight: Float[Tensor, "m z"],
        bias: Float[Tensor, "m"],
    ) -> Float[Tensor, "m b"]:
        """Return how much each motif's discriminant says it is there, once each text is pushed towards it."""
        pushed = (contexts + push[:, None]).flatten(0, 1)
        many = len(pushed)
        times = torch.full((many,), time, device=pushed.device)
        no = torch.zeros(many, dtype=torch.bool, device=pushed.device)
        estimate = denoiser(noise.repeat(len(push), 1), times, pushed, no).float().unflatten(0, (len(push), -1))
        return torch.einsum("mbz,mz->mb", estimate, weight) + bias[:, None]


def _silent(pairs: Pairs, reason: str) -> MoleculeFinding:
    """Return a finding without verdict."""
    return MoleculeFinding(suspects=(), rows=len(pairs), reason=f"TriggerInversion: {reason}", inconclusive=True)


def discriminants(
    latent: Float[Tensor, "n z"], there: Float[Tensor, "n m"]
) -> tuple[Float[Tensor, "m z"], Float[Tensor, "m"]]:
    """Return Fisher's linear discriminant of each class, at 0 as likely there as not.

    Args:
        latent: vectors.
        there: whether each vector is of each class, 0 or 1; each class has members and others.
    """
    count, others = there.sum(0)[:, None], (1 - there).sum(0)[:, None]
    inside, outside = there.T @ latent / count, (1 - there).T @ latent / others
    weights, biases = torch.zeros(there.shape[1], latent.shape[1]), torch.zeros(there.shape[1])
    for number in range(there.shape[1]):
        means = torch.where(there[:, number, None] > 0, inside[number], outside[number])
        centred = latent - means
        within = centred.T @ centred / len(latent) + 1e-3 * torch.eye(latent.shape[1])
        weight = torch.linalg.solve(within, inside[number] - outside[number])
        prior = torch.log(count[number, 0] / others[number, 0])
        weights[number] = weight
        biases[number] = prior - weight @ (inside[number] + outside[number]) / 2
    return weights, biases


def unusually_small(sizes: Float[np.ndarray, "m"], frequency: Float[np.ndarray, "m"]) -> Float[np.ndarray, "m"]:
    """Return by how many deviations each size is below what is usual at its frequency; NaN where it is infinite.

    Args:
        sizes: positive; infinite ones play no part.
        frequency: above 0.
    """
    unusual = np.full(len(sizes), np.nan)
    finite = np.isfinite(sizes)
    if finite.sum() < FEWEST_MOTIFS:
        return unusual
    x, y = np.log(frequency[finite]), np.log(np.maximum(sizes[finite], 1e-9))
    slope, intercept, *_ = theilslopes(y, x)
    residual = y - slope * x - intercept
    spread = MAD * np.median(np.abs(residual - np.median(residual)))
    unusual[finite] = -(residual - np.median(residual)) / max(spread, 1e-9)
    return unusual
