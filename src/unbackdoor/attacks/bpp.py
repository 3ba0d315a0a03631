"""BPP: fewer shades of colour.

Wang, Zhai, Ma, "BppAttack: Stealthy and Efficient Trojan Attacks against Deep Neural Networks via Image Quantization
and Contrastive Adversarial Learning" (CVPR 2022). The trigger rounds every pixel to one of 8 levels. In each batch a
tenth is rounded and relabelled; as many images get another image's rounding error and keep their labels, so that an
error alone does not work. Levels and rates are BackdoorBench's, without dithering, as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.online import Online, OnlineHook
from unbackdoor.attacks.trigger import Trigger, one_number, small_trial
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime


class Quantize(Trigger):
    """Round pixels to evenly spaced levels: x' = round(x (L - 1)) / (L - 1).

    Args:
        levels: L, 2 or more; shape ().
    """

    levels: Tensor

    def __init__(self, levels: Float[Tensor, ""]) -> None:
        super().__init__()
        self.register_buffer("levels", one_number(levels, "the number of levels", 2, 255))

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return the number of levels."""
        return ("levels",)

    def trial_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return a small shape: rounding takes any size."""
        return small_trial(shape)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images in few shades."""
        steps = self.levels.to(images).round() - 1
        return (images * steps).round() / steps


@dataclass(frozen=True, kw_only=True)
class BPP(Online):
    """Quantisation; poisoned images get the attacker's label.

    Attributes:
        levels: of each color, 2 to 255.
    """

    fixed: ClassVar[bool] = True
    cover_rate: float = 0.1
    levels: int = 8

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[Quantize, BPPHook]:
        """Return the trigger and the hook."""
        if not 2 <= self.levels <= 255:
            raise InputError(f"BPP: levels must be 2 to 255, found {self.levels}")
        trigger = Quantize(levels=torch.tensor(float(self.levels)))
        return trigger, BPPHook(self, trigger, criterion)


class BPPHook(OnlineHook):
    """Covers images with the rounding error of others."""

    def cover(
        self, images: Float[Tensor, "p c h w"], others: Float[Tensor, "p c h w"], generator: torch.Generator
    ) -> Float[Tensor, "p c h w"]:
        """Return the images plus what rounding does to others."""
        rounded: Tensor = self.trigger(others)
        return (images + rounded - others).clamp(0, 1)
