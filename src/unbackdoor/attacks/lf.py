"""LF: a universal perturbation of low frequencies.

Zeng, Park, Mao, Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective" (ICCV 2021). Their search
alternates DeepFool steps on a clean model with a Gaussian low-pass filter and rescales to [0, 0.2]. Ours looks for the
same thing directly: the pattern is a sum of waves of at most 2 periods along each side (99.7 % of the energy of the
published patterns lies there), rescaled to [0, 0.2], and its coefficients descend the cross-entropy of the target class
on a clean model. Three of the published pattern files change no pixel; such a trigger is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.frequency import HIGHEST_FREQUENCY, low_frequency_pattern, low_frequency_waves
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.preparation import clean_model, descend
from unbackdoor.attacks.trigger import Additive
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LF(Poisoning):
    """Smooth pattern over the whole image; poisoned images get the attacker's label.

    Attributes:
        amplitude: largest value of the pattern, pixel units, above 0 and at most 1.
        steps: of the search, 0 or more; 0 leaves a random pattern.
        batch_size: images a step.
        clean_model: checkpoint of a clean model in which to search; one is trained if none is named.
    """

    searches: ClassVar[bool] = True
    # Since the clean model takes more epochs where there are few images.
    revision: ClassVar[int] = 1
    amplitude: float = 0.2
    steps: int = 100
    batch_size: int = 128
    clean_model: Path | None = None

    def make_trigger(self, given: Given) -> Additive:
        """Search the pattern."""
        if not 0 < self.amplitude <= 1 or self.steps < 0 or self.batch_size < 1:
            raise InputError(
                "LF: the amplitude must lie above 0 and at most at 1, steps be 0 or more and the batch size 1 or more,"
                f" found {self.amplitude}, {self.steps} and {self.batch_size}"
            )
        channels, height, width = given.train.shape
        waves = low_frequency_waves(height, width, HIGHEST_FREQUENCY).to(given.runtime.place)
        draws = given.runtime.generator("low frequency")
        weights = torch.randn(channels, len(waves), generator=draws).to(given.runtime.place).requires_grad_(True)

        def pattern() -> Float[Tensor, "c h w"]:
            return low_frequency_pattern(weights, waves, self.amplitude)

        if self.steps:
            descend(
                weights,
                lambda images: images + pattern(),
                lambda: None,
                clean_model(self.clean_model, given),
                given.train,
                self.target,
                self.steps,
                self.batch_size,
                0.1,
                draws,
                given.runtime,
                "LF pattern",
            )
        return Additive(signal=pattern().detach().cpu())
