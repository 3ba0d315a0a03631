"""Blended: a faint picture over the whole image.

Chen, Liu, Li, Lu, Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning" (2017). The paper
has two kinds of pattern: random ("noise": every pixel uniform, fixed by the seed; our default) and a picture.
Benchmarks use one of Hello Kitty; we ship no pictures of others, so "cartoon" is a drawing of our own, and `picture`
takes any file. "stripes" is the Blend-Strip attack of Chen, Wu, Wang (NeurIPS 2022). The opacity is BackdoorBench's,
in training and testing alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.patterns import cartoon, noise, stripes, user_picture
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Stamp
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime

Pattern = Literal["noise", "cartoon", "stripes"]


@dataclass(frozen=True, kw_only=True)
class Blended(Poisoning):
    """Picture mixed into the whole image; poisoned images get the attacker's label.

    Attributes:
        alpha: opacity of the picture, above 0 and at most 1.
        pattern: "noise", "cartoon" or "stripes".
        picture: an image file to blend in instead.
    """

    alpha: float = 0.2
    pattern: Pattern = "noise"
    picture: Path | None = None

    def make_trigger(self, given: Given) -> Stamp:
        """Draw or read the picture."""
        if not 0 < self.alpha <= 1:
            raise InputError(f"alpha must lie above 0 and at most at 1, found {self.alpha}")
        _, height, width = given.train.shape
        pattern = picture(self.pattern, self.picture, given.train.shape, given.runtime)
        return Stamp(mask=torch.full((1, height, width), self.alpha), pattern=pattern)


def picture(pattern: str, path: Path | None, shape: tuple[int, int, int], runtime: Runtime) -> Float[Tensor, "c h w"]:
    """Return the picture that is to be blended in.

    Raises:
        InputError: no such pattern, or a file that cannot be read.
    """
    if path is not None:
        return user_picture(path, shape)
    match pattern:
        case "noise":
            return noise(shape, runtime.generator("blended picture"))
        case "cartoon":
            return cartoon(shape)
        case "stripes":
            return stripes(shape)
    raise InputError(f"the pattern is noise, cartoon or stripes, found {pattern!r}")
