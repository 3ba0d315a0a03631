"""BadNets: a small opaque patch in the corner.

Gu, Dolan-Gavitt, Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain" (2017).
Patch, place and rates are BackdoorBench's: a white square of 3 x 3 pixels in the bottom right corner of a 32 x 32
image, which grows with the image. Its mask rule cannot express black pixels; ours has an explicit mask.

Trap-and-Replace (NeurIPS 2022) attacks with two variants: `size=4, margin=1`, and `patch="grid"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import PATCHES, pasted, patch, scaled, user_picture, window
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BadNets(Poisoning):
    """Opaque patch in the bottom right corner; poisoned images get the attacker's label.

    Attributes:
        patch: "square" (white), "grid" or "checker" (black and white, see `patterns`).
        picture: an image file that the patch shows instead, resized to it.
        size: side of the patch in pixels at 32 x 32; scaled with larger or smaller images.
        margin: pixels between the patch and the two edges at 32 x 32, 0 or more; scaled likewise.
    """

    patch: Literal["square", "grid", "checker"] = "square"
    picture: Path | None = None
    size: int = 3
    margin: int = 0

    def make_trigger(self, given: Given) -> Stamp:
        """Make the patch."""
        if self.patch not in PATCHES or self.margin < 0:
            raise InputError(
                f"the patch is one of {', '.join(PATCHES)} and the margin 0 or more,"
                f" found {self.patch!r} and {self.margin}"
            )
        channels, height, width = given.train.shape
        rows, columns = scaled(self.size, height), scaled(self.size, width)
        row, column = height - rows - scaled(self.margin, height), width - columns - scaled(self.margin, width)
        mask = window(given.train.shape, rows, columns, row, column, "a patch")
        part = (channels, rows, columns)
        square = user_picture(self.picture, part) if self.picture else patch(self.patch, *part)
        return Stamp(mask=mask, pattern=pasted(given.train.shape, square, row, column))
