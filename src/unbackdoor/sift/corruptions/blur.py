"""Blur: out of focus, through glass, of what moves, and of a zoom."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.sift.corruptions.draws import Draws

DISKS = ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))
"""Radius, and deviation by which the disk itself is blurred."""
GLASS = ((0.7, 1, 2), (0.9, 2, 1), (1.0, 2, 3), (1.1, 3, 2), (1.5, 4, 2))
"""Deviation of the blur, largest shift, and rounds."""
MOTION = ((10, 3.0), (15, 5.0), (15, 8.0), (15, 12.0), (20, 15.0))
"""Radius, and deviation along the way."""
ZOOMS = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
"""End, which is left out, and step."""


def defocus_blur(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Spread each pixel over a disk."""
    radius, soft = DISKS[severity - 1]
    places = torch.arange(-radius - 2, radius + 3, device=images.device, dtype=images.dtype)
    disk = (places[:, None].square() + places.square() <= radius**2).to(images)
    kernel = gaussian_blur(disk[None, None], soft)[0, 0]
    kernel = (kernel / kernel.sum()).expand(images.shape[1], 1, -1, -1)
    wide = reflected(images, radius + 2)
    return F.conv2d(wide, kernel, groups=len(kernel))


def glass_blur(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Blur, let pixels change places with near ones, one after the other, and blur again."""
    soft, most, rounds = GLASS[severity - 1]
    mixed = gaussian_blur(images, soft)
    height, width = images.shape[2:]
    rows = torch.arange(len(images), device=images.device)
    shifts = draws.uniform("shifts", max(rounds for _, _, rounds in GLASS), height, width, 2).to(images.device)
    # From -most to most - 1, as theirs.
    moved = (shifts * 2 * most).long().clamp_max(2 * most - 1) - most
    for turn in range(rounds):
        for y in range(height - most - 1, most, -1):
            for x in range(width - most - 1, most, -1):
                there = rows, slice(None), y + moved[:, turn, y, x, 1], x + moved[:, turn, y, x, 0]
                here = mixed[:, :, y, x].clone()
                mixed[:, :, y, x] = mixed[there]
                mixed[there] = here
    return gaussian_blur(mixed, soft)


def motion_blur(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Smear each image along a line within 45 degrees of the horizontal."""
    radius, deviation = MOTION[severity - 1]
    angle = (draws.uniform("angle").to(images) - 0.5) * (math.pi / 2)
    return smeared(images, radius, deviation, angle)


def zoom_blur(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Average over growing enlargements of the middle, and the image itself once more."""
    end, step = ZOOMS[severity - 1]
    factors = [1 + step * number for number in range(round((end - 1) / step))]
    zoomed = [enlarged(images, factor) for factor in factors]
    return torch.stack([images, *zoomed]).mean(0)


def gaussian_blur(images: Float[Tensor, "b c h w"], deviation: float) -> Float[Tensor, "b c h w"]:
    """Blur by a Gaussian of this deviation in pixels; beyond its edges an image is its mirror."""
    vertical, horizontal = (_smoothing(size, deviation).to(images) for size in images.shape[2:])
    blurred: Tensor = vertical @ images @ horizontal.T
    return blurred


def _smoothing(size: int, deviation: float) -> Float[Tensor, "n n"]:
    """Return what blurs a row of pixels, as a matrix: of however wide a Gaussian, folded back at the edges."""
    reach = max(1, math.ceil(3 * deviation))
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-offsets.double().square() / (2 * deviation**2))
    there = _mirrored(torch.arange(size)[:, None] + offsets, size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, there, (weights / weights.sum()).expand(size, -1))


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Return the places, those beyond the edges folded back, the edge itself once."""
    period = max(1, 2 * (size - 1))
    folded = places % period
    return torch.minimum(folded, period - folded)


def reflected(images: Float[Tensor, "b c h w"], border: int) -> Float[Tensor, "b c H W"]:
    """Return the images with a border of their mirror, which may be wider than they are."""
    vertical, horizontal = (
        _mirrored(torch.arange(-border, size + border, device=images.device), size) for size in images.shape[2:]
    )
    return images[:, :, vertical][:, :, :, horizontal]


def smeared(
    images: Float[Tensor, "b c h w"], radius: int, deviation: float, angles: Float[Tensor, "b"]
) -> Float[Tensor, "b c h w"]:
    """Smear each image along its own angle, to one side, with weights that fall off as a Gaussian."""
    height, width = images.shape[2:]
    length = 2 * radius + 1
    weights = torch.exp(-torch.arange(length, dtype=torch.float64).square() / (2 * deviation**2))
    weights /= weights.sum()
    rows = torch.arange(len(images), device=images.device)[:, None, None]
    channels_last = images.movedim(1, -1)
    blurred = torch.zeros_like(channels_last)
    for number, weight in enumerate(weights.tolist()):
        down, right = (number * angles.sin()).round().long(), (number * angles.cos()).round().long()
        y = (torch.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
        x = (torch.arange(width, device=images.device) + right[:, None]).clamp(0, width - 1)
        blurred += weight * channels_last[rows, y[:, :, None], x[:, None, :]]
    return blurred.movedim(-1, 1)


def enlarged(images: Float[Tensor, "b c h w"], factor: float) -> Float[Tensor, "b c h w"]:
    """Return the middle of the images, enlarged by this factor to their size."""
    turned = torch.tensor([[1 / factor, 0, 0], [0, 1 / factor, 0]], device=images.device, dtype=images.dtype)
    grid = F.affine_grid(turned.expand(len(images), -1, -1), list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=True)
