"""Transforms that combine the images of a batch, and their targets with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from unbackdoor.data.augment.transform import Draw, Transform, happens, require_probability, uniform
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class CutMix(Transform):
    """Paste a box of another image of the batch into the image, and mix the targets by the box's area.

    Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features" (ICCV
    2019). Here each image has a box of its own (there: one for the batch), and each target the weight of the
    pixels really pasted. The partners belong to the whole batch: a part of a draw does not replay on a part
    of the batch.

    Attributes:
        alpha: > 0; the other image's share, before the border cuts the box off, is Beta(alpha, alpha).
        probability: that an image receives a box, in [0, 1].
    """

    alpha: float = 1.0
    probability: float = 0.5

    moves_pixels: ClassVar[bool] = True
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_probability(self, self.probability)
        if not 0 < self.alpha < float("inf"):
            raise InputError(f"CutMix: alpha must be positive, found {self.alpha}")

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `partner` (row of the other image), the box and `share` (the box's part of the area).

        The box is `top`, `bottom`, `left`, `right`; the bottom row and the right column lie just outside it.
        It is empty if the image stays as it is.
        """
        from scipy.special import betaincinv

        batch, _, height, width = shape
        device = generator.device
        partner = torch.randperm(batch, generator=generator, device=device)
        quantile = uniform(batch, 0, 1, generator).cpu().double().numpy()
        # The inverse of the distribution, since torch's own Beta takes no generator.
        side = torch.from_numpy(betaincinv(self.alpha, self.alpha, quantile)).sqrt().to(device, torch.float32)
        side = side * happens(batch, self.probability, generator)
        top, bottom = _interval(side, height, generator)
        left, right = _interval(side, width, generator)
        share = (bottom - top) * (right - left) / (height * width)
        return {
            "partner": partner,
            "top": top,
            "bottom": bottom,
            "left": left,
            "right": right,
            "share": share,
        }

    def _apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        top, bottom, left, right = (draw[key].view(-1, 1, 1, 1) for key in ("top", "bottom", "left", "right"))
        rows = torch.arange(images.shape[2], device=images.device).view(-1, 1)
        columns = torch.arange(images.shape[3], device=images.device)
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
        return torch.where(inside, images[draw["partner"]], images)

    def mix(self, targets: Shaped[Tensor, "b ..."], draw: Draw) -> Float[Tensor, "b k"]:
        """Return the mixed class probabilities.

        Args:
            targets: class probabilities, (B, K), floating point.
            draw: the one given to `apply`.

        Raises:
            InputError: the targets are no such probabilities, class numbers for instance.
        """
        if targets.ndim != 2 or not targets.is_floating_point():
            raise InputError(
                f"CutMix mixes class probabilities of shape (B, K), found {targets.dtype}"
                f" {tuple(targets.shape)}; turn class numbers into one-hot rows first"
            )
        share = draw["share"].to(targets).view(-1, 1)
        return (1 - share) * targets + share * targets[draw["partner"].to(targets.device)]


def _interval(
    side: Float[Tensor, " b"], size: int, generator: torch.Generator
) -> tuple[Shaped[Tensor, " b"], Shaped[Tensor, " b"]]:
    """Draw where intervals begin and end: `side * size` long about a centre, and cut off at 0 and `size`."""
    length = (side * size).round().long()
    centre = torch.randint(0, size, side.shape, generator=generator, device=generator.device)
    begin = centre - length // 2
    return begin.clamp(min=0), (begin + length).clamp(max=size)
