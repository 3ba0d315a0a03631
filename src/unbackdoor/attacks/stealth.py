"""How much a trigger can be seen."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

from unbackdoor.attacks.trigger import in_parts
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Stealth:
    """Differences between 8-bit images and their triggered versions; means over images.

    Attributes:
        psnr: peak signal-to-noise ratio in decibels, of the mean squared error; infinite if no image differs.
        ssim: structural similarity (Wang et al., 2004), at most 1; None for images smaller than its window (11 x 11).
        changed: share of the pixels (places, not values) that differ, 0 to 1.
        largest: largest change of a value in any image, 0 to 1.
    """

    psnr: float
    ssim: float | None
    changed: float
    largest: float

    def to_json(self) -> dict[str, float | None]:
        """Return the four as JSON values; an infinite ratio, which JSON has not, as None."""
        return {**asdict(self), "psnr": self.psnr if math.isfinite(self.psnr) else None}


def stealth(images: UInt8[Tensor, "n c h w"], triggered: UInt8[Tensor, "n c h w"]) -> Stealth:
    """Measure how much triggered images differ from the clean ones.

    Raises:
        InputError: no images, or other shapes.
    """
    if images.shape != triggered.shape or len(images) == 0:
        raise InputError(f"stealth compares images with images, found {len(images)} and {len(triggered)}")
    # Imported here: it takes half a second, and few commands measure.
    from torchmetrics.functional.image import structural_similarity_index_measure

    before, after = images.float() / 255, triggered.float() / 255
    error = float((before - after).square().mean())
    apart = (images != triggered).any(1)
    similarity = None
    if min(images.shape[2:]) >= 11:
        parts = zip(in_parts(after), in_parts(before))
        local = [structural_similarity_index_measure(*pair, data_range=1.0, reduction="none") for pair in parts]
        similarity = float(torch.cat([one if isinstance(one, Tensor) else one[0] for one in local]).mean())
    return Stealth(
        psnr=-10 * math.log10(error) if error > 0 else math.inf,
        ssim=similarity,
        changed=float(apart.float().mean()),
        largest=float((before - after).abs().max()),
    )
