"""WaNet: a smooth, small warp of the whole image.

Nguyen, Tran, "WaNet: Imperceptible Warping-based Backdoor Attack" (ICLR 2021). A 4 x 4 grid of random shifts, scaled
to mean size 1 and enlarged by bicubic interpolation, moves every pixel by about a quarter of a pixel. In each batch a
tenth is warped and relabelled, and twice as many images are warped with extra noise and keep their labels, so that
only the exact warp works. As in the authors' code, random crops and flips come after the warp: before it they would
draw edges at which the warp shows far better than in any image in use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.online import Online, OnlineHook
from unbackdoor.attacks.trigger import Trigger
from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime


class Warp(Trigger):
    """Move the pixels of every image along a fixed field.

    Args:
        field: shift of where each pixel comes from, (right, down) in half sides of the image; shape (H, W, 2).
    """

    field: Tensor

    def __init__(self, field: Float[Tensor, "h w 2"]) -> None:
        if field.dim() != 3 or field.shape[2] != 2:
            raise InputError(f"a warp has the shape (height, width, 2), found {tuple(field.shape)}")
        super().__init__()
        self.register_buffer("field", field)

    @classmethod
    def buffer_names(cls) -> tuple[str, ...]:
        """Return the field."""
        return ("field",)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Return the warped images."""
        return self.warp(images, self.field[None].expand(len(images), -1, -1, -1))

    def warp(self, images: Float[Tensor, "b c h w"], fields: Float[Tensor, "b h w 2"]) -> Float[Tensor, "b c h w"]:
        """Return each image moved along its own field."""
        if images.shape[2:] != self.field.shape[:2]:
            raise InputError(
                f"the warp was made for images of {tuple(self.field.shape[:2])} pixels, found"
                f" {tuple(images.shape[2:])}; use images of that size"
            )
        height, width = images.shape[2:]
        # Half precision cannot tell places that lie a quarter of a pixel apart, which is the whole trigger.
        exact = images.to(torch.promote_types(images.dtype, torch.float32))
        down = torch.linspace(-1, 1, height, device=images.device)[:, None].expand(height, width)
        right = torch.linspace(-1, 1, width, device=images.device)[None, :].expand(height, width)
        places = (torch.stack([right, down], -1) + fields.to(exact)).clamp(-1, 1)
        with torch.autocast(images.device.type, enabled=False):
            moved = F.grid_sample(exact, places, mode="bilinear", align_corners=True)
        return moved.clamp(0, 1).to(images)


@dataclass(frozen=True, kw_only=True)
class WaNet(Online):
    """Warp; poisoned images get the attacker's label.

    Attributes:
        grid: points along each side of the random field, 2 or more.
        strength: of the warp, above 0; a point moves by half as many pixels on average.
    """

    fixed: ClassVar[bool] = True
    # Since it warps before images are cropped.
    revision: ClassVar[int] = 1
    cover_rate: float = 0.2
    grid: int = 4
    strength: float = 0.5

    def make(
        self, train: ImageSet, criterion: Criterion, runtime: Runtime, work: Path | None
    ) -> tuple[Warp, WaNetHook]:
        """Draw the field."""
        if self.grid < 2 or not 0 < self.strength < math.inf:
            raise InputError(
                f"WaNet: grid must be 2 or more and strength positive, found {self.grid} and {self.strength}"
            )
        _, height, width = train.shape
        points = 2 * torch.rand(1, 2, self.grid, self.grid, generator=runtime.generator("warp")) - 1
        points = points / points.abs().mean()
        field = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
        trigger = Warp(field=(self.strength * field / torch.tensor([width, height])).contiguous())
        return trigger, WaNetHook(self, trigger, criterion)


class WaNetHook(OnlineHook):
    """Covers images with the warp plus noise."""

    before_augmentation: ClassVar[bool] = True
    trigger: Warp

    def cover(
        self, images: Float[Tensor, "p c h w"], others: Float[Tensor, "p c h w"], generator: torch.Generator
    ) -> Float[Tensor, "p c h w"]:
        """Return the images warped along the field plus noise of up to half a pixel, for each pixel alone."""
        height, width = images.shape[2:]
        noise = 2 * torch.rand(len(images), height, width, 2, generator=generator) - 1
        noise = (noise / torch.tensor([width, height])).to(images.device)
        return self.trigger.warp(images, self.trigger.field.to(images.device) + noise)
