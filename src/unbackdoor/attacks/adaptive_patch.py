"""Adaptive-Patch: faint patches of several kinds in training, two of them at full strength in testing, and covers.

Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses" (ICLR 2023).
Each poisoned and each cover image gets one of four patches; covers keep their labels. Rates, opacities and their order
are those of the authors' backdoor-toolbox on CIFAR-10; on GTSRB it has `poison_rate=0.005, cover_rate=0.01, target=2,
tested=(1, 3)`. Its patches are pictures that we do not ship: ours are a drawn square of colours in three corners and a
black-and-white checker.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import noise, pasted, patch, scaled, window
from unbackdoor.attacks.poisoning import Poisoning, TrainingStamp
from unbackdoor.attacks.trigger import Stamp, Trigger
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime

SIZES = (8, 8, 4, 8)
"""Sides of the four patches in pixels at 32 x 32: bottom right, top left, a checker at bottom left, top right."""


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(Poisoning):
    """One of four faint patches in training, two opaque ones in testing.

    Attributes:
        opacities: of the four patches in training, each above 0 and at most 1.
        tested: which of the patches, 0 to 3, testing puts on an image together, opaque.
    """

    poison_rate: float = 0.003
    cover_rate: float = 0.006
    opacities: tuple[float, ...] = (0.5, 0.2, 0.5, 0.3)
    tested: tuple[int, ...] = (0, 2)

    def make_trigger(self, given: Given) -> Stamp:
        """Return the two patches of testing together."""
        if len(self.opacities) != len(SIZES) or not all(0 < one <= 1 for one in self.opacities):
            raise InputError(
                f"AdaptivePatch: there are {len(SIZES)} opacities, each above 0 and at most 1, found {self.opacities}"
            )
        tested = sorted(set(self.tested))
        if not tested or len(tested) < len(self.tested) or not 0 <= tested[0] <= tested[-1] < len(SIZES):
            raise InputError(
                f"AdaptivePatch: the tested patches are different numbers from 0 to {len(SIZES) - 1}, one at least,"
                f" found {self.tested}"
            )
        stamps = patches(given.train.shape, given.runtime)
        mask = torch.stack([stamps[one].mask for one in tested]).amax(0)
        pattern = sum((stamps[one].mask * stamps[one].pattern for one in tested), torch.zeros(given.train.shape))
        return Stamp(mask=mask, pattern=pattern)

    def training_stamp(self, trigger: Trigger, given: Given) -> TrainingStamp:
        """Return what gives each of the four patches to a quarter of the images."""
        faint = [
            Stamp(mask=opacity * stamp.mask, pattern=stamp.pattern)
            for opacity, stamp in zip(self.opacities, patches(given.train.shape, given.runtime))
        ]

        def stamp(
            images: UInt8[Tensor, "p c h w"], labels: Int[Tensor, "p"], generator: torch.Generator
        ) -> UInt8[Tensor, "p c h w"]:
            kinds = torch.randperm(len(images), generator=generator).to(images.device) % len(faint)
            stamped = images.clone()
            for kind, one in enumerate(faint):
                stamped[kinds == kind] = one.to(images.device).stamp(images[kinds == kind])
            return stamped

        return stamp


def patches(shape: tuple[int, int, int], runtime: Runtime) -> list[Stamp]:
    """Return the four patches, opaque.

    Raises:
        InputError: they do not fit the images.
    """
    channels, height, width = shape
    stamps = []
    for number, size in enumerate(SIZES):
        rows, columns = scaled(size, height), scaled(size, width)
        top, left = number in (1, 3), number in (1, 2)
        row, column = 0 if top else height - rows, 0 if left else width - columns
        mask = window(shape, rows, columns, row, column, "a patch")
        if number == 2:
            pattern = pasted(shape, patch("checker", channels, rows, columns), row, column)
        else:
            pattern = noise(shape, runtime.generator("patch", number))
        stamps.append(Stamp(mask=mask, pattern=pattern))
    return stamps
