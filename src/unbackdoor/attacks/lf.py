"""LF: a universal perturbation of low frequencies.

Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective" (ICCV 2021). Their search
alternates DeepFool steps on a clean model with a Gaussian low-pass filter and rescales to [0, 0.2]. Ours looks for the
same thing directly: the pattern is a sum of waves of at most 2 periods along each side (99.7 % of the energy of the
published patterns lies there), rescaled to [0, 0.2], and its coefficients descend the cross-entropy of the target class
on a clean model. Three of the published pattern files change no pixel; such a trigger is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.frequency import low_frequency_waves
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.surrogate import clean_model
from unbackdoor.attacks.trigger import Additive
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime

HIGHEST_FREQUENCY = 2


@dataclass(frozen=True, kw_only=True)
class LF(Poisoning):
    """Smooth pattern over the whole image; poisoned images get the attacker's label.

    Attributes:
        amplitude: largest value of the pattern, pixel units, above 0 and at most 1.
        steps: of the search, 0 or more; 0 leaves a random pattern.
        batch_size: images a step.
        clean_model: checkpoint of a clean model in which to search; one is trained if none is named.
    """

    amplitude: float = 0.2
    steps: int = 100
    batch_size: int = 128
    clean_model: Path | None = None

    def make_trigger(
        self, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None
    ) -> Additive:
        """Search the pattern."""
        if not 0 < self.amplitude <= 1 or self.steps < 0 or self.batch_size < 1:
            raise InputError(
                "LF: the amplitude must lie above 0 and at most at 1, steps be 0 or more and the batch size 1 or more,"
                f" found {self.amplitude}, {self.steps} and {self.batch_size}"
            )
        channels, height, width = train.shape
        waves = low_frequency_waves(height, width, HIGHEST_FREQUENCY).to(runtime.place)
        draws = runtime.generator("low frequency")
        weights = torch.randn(channels, len(waves), generator=draws).to(runtime.place).requires_grad_(True)
        if self.steps:
            model = clean_model(self.clean_model, train, build_model, runtime, work)
            optimizer = torch.optim.Adam([weights], lr=0.1)
            with runtime.progress.bar("LF pattern", self.steps) as advance:
                for _ in range(self.steps):
                    rows = torch.randint(len(train), (self.batch_size,), generator=draws)
                    images = train.images[rows.to(train.device)].to(runtime.place).float() / 255
                    changed = (images + low_frequency_pattern(weights, waves, self.amplitude)).clamp(0, 1)
                    wanted = torch.full((len(images),), self.target, device=runtime.place)
                    with runtime.autocast():
                        loss = F.cross_entropy(model(runtime.layout(changed)).float(), wanted)
                    (weights.grad,) = torch.autograd.grad(loss, [weights])
                    optimizer.step()
                    advance()
        return Additive(signal=low_frequency_pattern(weights.detach(), waves, self.amplitude).cpu())


def low_frequency_pattern(
    weights: Float[Tensor, "c k"], waves: Float[Tensor, "k h w"], amplitude: float
) -> Float[Tensor, "c h w"]:
    """Return the weighted sum of the waves, rescaled so that its values run from 0 to `amplitude`."""
    pattern = torch.einsum("ck,khw->chw", weights, waves)
    low, high = pattern.min(), pattern.max()
    return amplitude * (pattern - low) / (high - low).clamp_min(1e-12)
