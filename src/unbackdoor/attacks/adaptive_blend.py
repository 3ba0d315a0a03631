"""Adaptive-Blend: pieces of a faint picture in training, the whole picture in testing, and covers.

Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the Assumption of Latent Separability for Backdoor Defenses" (ICLR 2023).
The picture is cut into 4 x 4 pieces, of which each training image gets a random half; covers get such halves too and
keep their labels, so that poisoned and clean images do not part in feature space. Rates and opacities are those of the
authors' backdoor-toolbox; other papers use far higher rates. The picture is a drawing of our own, or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.blended import Pattern, picture
from unbackdoor.attacks.poisoning import Poisoning, TrainingStamp
from unbackdoor.attacks.trigger import Stamp, Trigger, in_parts, to_bytes
from unbackdoor.errors import InputError

SIDE = 4
"""Pieces along each side."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Poisoning):
    """Random halves of a faint picture in training, the whole in testing.

    Attributes:
        alpha: opacity in training, above 0 and at most 1.
        test_alpha: opacity in testing, above 0 and at most 1.
        pieces: of 16, how many a training image gets, 1 to 16.
        pattern: "noise", "cartoon" or "stripes".
        picture: an image file to blend in instead.
    """

    poison_rate: float = 0.003
    cover_rate: float = 0.003
    alpha: float = 0.15
    test_alpha: float = 0.2
    pieces: int = 8
    pattern: Pattern = "cartoon"
    picture: Path | None = None

    def make_trigger(self, given: Given) -> Stamp:
        """Return the whole picture at the opacity of testing."""
        if not (0 < self.alpha <= 1 and 0 < self.test_alpha <= 1 and 1 <= self.pieces <= SIDE**2):
            raise InputError(
                f"AdaptiveBlend: opacities must lie above 0 and at most at 1, and pieces be 1 to {SIDE**2},"
                f" found {self.alpha}, {self.test_alpha} and {self.pieces}"
            )
        _, height, width = given.train.shape
        pattern = picture(self.pattern, self.picture, given.train.shape, given.runtime)
        return Stamp(mask=torch.full((1, height, width), self.test_alpha), pattern=pattern)

    def training_stamp(self, trigger: Trigger, given: Given) -> TrainingStamp:
        """Return what blends in a random choice of pieces for each image."""
        assert isinstance(trigger, Stamp)

        def stamp(
            images: UInt8[Tensor, "p c h w"], labels: Int[Tensor, "p"], generator: torch.Generator
        ) -> UInt8[Tensor, "p c h w"]:
            blended = []
            for part in in_parts(images):
                masks = self.alpha * piece_masks(len(part), given.train.shape[1:], self.pieces, generator)
                mixed = torch.lerp(part.float() / 255, trigger.pattern, masks.to(part.device))
                blended.append(to_bytes(mixed))
            return torch.cat(blended)

        return stamp


def piece_masks(count: int, size: tuple[int, int], pieces: int, generator: torch.Generator) -> Float[Tensor, "n 1 h w"]:
    """Return one mask an image: 1 in `pieces` random pieces of 4 x 4, 0 in the others."""
    chosen = torch.rand(count, SIDE**2, generator=generator).argsort(1) < pieces
    rows, columns = (torch.arange(side) * SIDE // side for side in size)
    return chosen.view(count, 1, SIDE, SIDE)[:, :, rows][:, :, :, columns].float()
