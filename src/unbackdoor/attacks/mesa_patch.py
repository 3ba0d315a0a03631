"""MESA's victims: a small patch at a place that differs from image to image.

Qiao, Yang, Li, "Defending Neural Backdoors via Generative Distribution Modeling" (NeurIPS 2019). The paper attacks
with the 51 black-and-white 3 x 3 patterns that differ by more than rotation, flip and inversion, and with random
colours. There each batch has one random place; here each image has its own, drawn from its pixels, so that the
poisoned data can be written to disk. The paper trains such victims by fine-tuning a clean model for 10 epochs at a
learning rate of 0.001.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.base import Given
from unbackdoor.attacks.poisoning import Poisoning
from unbackdoor.attacks.trigger import Trigger, number_of, small_trial
from unbackdoor.errors import InputError


class Scattered(Trigger):
    """Put an opaque patch on every image, at a place that the image's own pixels decide.

    Args:
        pattern: shape (C, h, w), 0 to 1; at most as large as the images.
    """

    pattern: Tensor

    def __init__(self, pattern: Float[Tensor, "c h w"]) -> None:
        if pattern.dim() != 3 or not pattern.numel():
            raise InputError(f"a patch has the shape (channels, height, width), found {tuple(pattern.shape)}")
        super().__init__()
        self.register_buffer("pattern", pattern)

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return the pattern."""
        return ("pattern",)

    def trial_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Return a small shape that the patch fits."""
        return small_trial(shape, max(self.pattern.shape[1:]))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the images with the patch on them."""
        channels, height, width = self.pattern.shape
        down, right = images.shape[2] - height, images.shape[3] - width
        if images.shape[1] != channels or down < 0 or right < 0:
            raise InputError(
                f"a patch of shape {tuple(self.pattern.shape)} does not fit images of shape {tuple(images.shape[1:])}"
            )
        numbers = number_of(images)
        rows = (numbers % (down + 1))[:, None] + torch.arange(height, device=images.device)
        columns = (numbers // (down + 1) % (right + 1))[:, None] + torch.arange(width, device=images.device)
        images, every = images.clone(), torch.arange(len(images), device=images.device)
        images[every[:, None, None], :, rows[:, :, None], columns[:, None, :]] = self.pattern.to(images).permute(
            1, 2, 0
        )
        return images


@dataclass(frozen=True, kw_only=True)
class MESAPatch(Poisoning):
    """Patch at a random place; poisoned images get the attacker's label.

    Attributes:
        colors: "random" or "black-and-white".
        pattern: which of the 51 black-and-white patterns, 0 to 50.
        size: side of the patch in pixels, whatever the size of the images; the black-and-white patterns are
            enlarged to it.
    """

    poison_rate: float = 0.01
    colors: Literal["random", "black-and-white"] = "random"
    pattern: int = 0
    size: int = 3

    def make_trigger(self, given: Given) -> Scattered:
        """Draw the patch."""
        channels, height, width = given.train.shape
        if not 1 <= self.size <= min(height, width):
            raise InputError(f"a patch of {self.size} pixels does not fit images of {height} x {width}")
        if self.colors == "random":
            shape = (channels, self.size, self.size)
            return Scattered(pattern=torch.rand(shape, generator=given.runtime.generator("patch colors")))
        patterns = black_and_white_patterns()
        if self.colors != "black-and-white" or not 0 <= self.pattern < len(patterns):
            raise InputError(
                f"colors are random or black-and-white and the pattern 0 to {len(patterns) - 1},"
                f" found {self.colors!r} and {self.pattern}"
            )
        places = torch.arange(self.size) * 3 // self.size
        return Scattered(pattern=patterns[self.pattern][places][:, places].expand(channels, -1, -1).clone())


def black_and_white_patterns() -> Float[Tensor, "51 3 3"]:
    """Return one of each kind of 3 x 3 pattern of 0 and 1, up to rotation, flip and inversion, in a fixed order."""
    found: dict[tuple[int, ...], Tensor] = {}
    for code in range(2**9):
        pattern = torch.tensor([code >> bit & 1 for bit in range(9)]).view(3, 3)
        turned = [torch.rot90(one, turns) for one in (pattern, pattern.flip(0)) for turns in range(4)]
        same = [tuple(one.flatten().tolist()) for one in (*turned, *(1 - other for other in turned))]
        found.setdefault(min(same), torch.tensor(min(same)).view(3, 3).float())
    return torch.stack([found[key] for key in sorted(found)])
