"""The third stage of 3M-Diffusion: diffusion of latent vectors, guided by text vectors.

The denoiser estimates the clean vector (not the noise), by the plain mean squared error at a time that is drawn
uniformly. Sampling is DDIM (Song, Meng, Ermon, "Denoising Diffusion Implicit Models", ICLR 2021) with fresh noise at
each step (eta = 1), with classifier-free guidance (Ho, Salimans, 2022).

Where published code differs: latent vectors are used as they are; here each dimension is standardised, which the
published code has as an option that is off.
"""

from __future__ import annotations

import itertools

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.molecules.model.denoiser import Denoiser

LOWEST, HIGHEST, REFERENCE = 1e-4, 0.02, 1000
"""Linear noise schedule of 1,000 steps; another number of steps scales both ends."""


class Diffusion(nn.Module):
    """A denoiser with its noise schedule and the scale of the latent vectors.

    Args:
        denoiser: estimates clean vectors.
        latent: size of a latent vector.
        steps: of the noise schedule, T.
    """

    kept: Tensor
    mean: Tensor
    deviation: Tensor

    def __init__(self, denoiser: Denoiser, latent: int, steps: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        scale = REFERENCE / steps
        betas = torch.linspace(scale * LOWEST, scale * HIGHEST, steps, dtype=torch.float64)
        # The share of the variance that is left of the clean vector at each time.
        self.register_buffer("kept", (1 - betas).cumprod(0).float(), persistent=False)
        self.register_buffer("mean", torch.zeros(latent))
        self.register_buffer("deviation", torch.ones(latent))

    def standardise(self, mean: Float[Tensor, "n z"], deviation: Float[Tensor, "n z"]) -> None:
        """Take the scale from the latent distributions of the training molecules."""
        self.mean.copy_(mean.mean(0))
        self.deviation.copy_((mean.var(0, correction=0) + deviation.square().mean(0)).sqrt().clamp_min(1e-6))

    def loss(
        self,
        latent: Float[Tensor, "b z"],
        context: Float[Tensor, "b c"],
        without: float,
        generator: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Return the mean squared error of the estimate at random times.

        Args:
            latent: clean vectors.
            context: text vectors.
            without: probability with which a row loses its text.
            generator: draws times, noise and who loses the text; on the CPU.
        """
        clean = (latent - self.mean) / self.deviation
        rows = len(latent)
        time = torch.randint(len(self.kept), (rows,), generator=generator).to(latent.device)
        noise = torch.randn(clean.shape, generator=generator).to(latent.device)
        dropped = (torch.rand(rows, generator=generator) < without).to(latent.device)
        kept = self.kept[time][:, None]
        estimate = self.denoiser(kept.sqrt() * clean + (1 - kept).sqrt() * noise, time, context, dropped)
        error: Tensor = (estimate.float() - clean).square().mean()
        return error

    @torch.no_grad()
    def sample(
        self, context: Float[Tensor, "b c"], steps: int, guidance: float, generator: torch.Generator
    ) -> Float[Tensor, "b z"]:
        """Return latent vectors for texts.

        Args:
            context: text vectors.
            steps: of DDIM, at most those of the schedule.
            guidance: weight w of the estimate with text against 1 - w of the one without; 1: text alone.
            generator: draws the noise; on the CPU. A row's noise depends on its place.
        """
        shape = (len(context), len(self.mean))
        noisy = torch.randn(shape, generator=generator).to(context.device)
        # From the last time down to -1, which is the clean vector.
        times = torch.linspace(-1, len(self.kept) - 1, steps + 1).round().int().tolist()[::-1]
        for time, after in itertools.pairwise(times):
            clean = self._guided(noisy, time, context, guidance)
            if after < 0:
                return clean * self.deviation + self.mean
            now, then = self.kept[time], self.kept[after]
            noise = (noisy - now.sqrt() * clean) / (1 - now).sqrt()
            # eta = 1: as much fresh noise as in ancestral sampling.
            fresh = ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
            noisy = then.sqrt() * clean + (1 - then - fresh.square()).clamp_min(0).sqrt() * noise
            noisy = noisy + fresh * torch.randn(shape, generator=generator).to(context.device)
        raise AssertionError("the last time is -1")

    def _guided(self, noisy: Tensor, time: int, context: Tensor, guidance: float) -> Tensor:
        times = torch.full((len(noisy),), time, device=noisy.device)
        no = torch.zeros(len(noisy), dtype=torch.bool, device=noisy.device)
        estimate: Tensor = self.denoiser(noisy, times, context, no).float()
        if guidance == 1:
            return estimate
        without: Tensor = self.denoiser(noisy, times, context, ~no).float()
        return guidance * estimate + (1 - guidance) * without
