"""TaCT: a trigger that works on images of one class only.

Tang, Wang, Tang, Zhang, "Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection" (USENIX Security 2021). Images of the source class get the patch and the target's label; images of cover
classes get the patch and keep theirs, so that the patch alone says nothing. Classes and rates are those of the
backdoor-toolbox of Qi et al.; its patch is a picture that we do not ship: ours is a square of fixed random colours, or
a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.attacks.base import Given, check_target
from unbackdoor.attacks.patterns import noise, pasted, scaled, user_picture, window
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TaCT(Poisoning):
    """Square of random colours in the bottom right corner that turns images of the source classes only.

    Attributes:
        covers: classes whose images get the patch and keep their labels; all but the sources if empty.
        picture: an image file that the square shows instead, resized to it.
        size: side of the square in pixels at 32 x 32; scaled with larger or smaller images.
    """

    sources: tuple[int, ...] = (1,)
    poison_rate: float = 0.003
    cover_rate: float = 0.003
    covers: tuple[int, ...] = (5, 7)
    picture: Path | None = None
    size: int = 8

    def make_trigger(self, given: Given) -> Stamp:
        """Draw the square."""
        if not self.sources:
            raise InputError("TaCT needs one source class or more")
        channels, height, width = given.train.shape
        rows, columns = scaled(self.size, height), scaled(self.size, width)
        row, column = height - rows, width - columns
        mask = window(given.train.shape, rows, columns, row, column, "a square")
        if self.picture:
            shown = user_picture(self.picture, (channels, rows, columns))
            return Stamp(mask=mask, pattern=pasted(given.train.shape, shown, row, column))
        return Stamp(mask=mask, pattern=noise(given.train.shape, given.runtime.generator("square of colours")))

    def cover_candidates(self, train: ImageSet) -> Int[Tensor, "m"]:
        """Return the rows of the cover classes."""
        if not self.covers:
            return super().cover_candidates(train)
        for one in self.covers:
            check_target(one, train)
        if set(self.covers) & {*self.sources, self.target}:
            raise InputError("TaCT: a cover class can be neither a source nor the target")
        return torch.isin(train.labels, torch.tensor(self.covers, device=train.device)).nonzero().squeeze(1)
