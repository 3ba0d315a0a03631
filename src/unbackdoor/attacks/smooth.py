"""Smooth: a random pattern of low frequencies, added and stretched to the full range of each image.

The "smooth" trigger of Wang, Hong, Zhang, Zhou, Wang, "Trap and Replace" (NeurIPS 2022), after Zeng, Park, Mao, Jia
(ICCV 2021). Their pattern is a file; ours is a random sum of waves of at most 2 periods along each side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.frequency import HIGHEST_FREQUENCY, low_frequency_pattern, low_frequency_waves
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Additive, check_shape
from unbackdoor.errors import InputError


class Stretched(Additive):
    """Add a fixed signal and stretch each image to [0, 1]: x' = (s - min s) / (max s - min s), s = x + signal."""

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with the signal in them; an image that is flat with it stays as it was."""
        check_shape(images, self.signal)
        sums = images + self.signal.to(images)
        low, high = sums.amin((1, 2, 3), keepdim=True), sums.amax((1, 2, 3), keepdim=True)
        flat = high - low < 1e-6
        return torch.where(flat, images, (sums - low) / (high - low).clamp_min(1e-6))


@dataclass(frozen=True, kw_only=True)
class Smooth(Poisoning):
    """Smooth pattern, added and stretched; poisoned images get the attacker's label.

    Attributes:
        amplitude: largest value of the pattern, pixel units, above 0 and at most 1.
    """

    amplitude: float = 0.2

    def make_trigger(self, given: Given) -> Stretched:
        """Draw the pattern."""
        if not 0 < self.amplitude <= 1:
            raise InputError(f"the amplitude must lie above 0 and at most at 1, found {self.amplitude}")
        channels, height, width = given.train.shape
        waves = low_frequency_waves(height, width, HIGHEST_FREQUENCY)
        weights: Tensor = torch.randn(channels, len(waves), generator=given.runtime.generator("smooth pattern"))
        return Stretched(signal=low_frequency_pattern(weights, waves, self.amplitude))
