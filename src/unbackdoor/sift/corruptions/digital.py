"""What programs do to images: contrast, bending, coarse pixels, and compression."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from unbackdoor.sift.corruptions.blur import gaussian_blur
from unbackdoor.sift.corruptions.draws import Draws

CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
"""Share of the distance from the mean that is left."""
ELASTIC = ((2.0, 0.7, 0.1), (2.0, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
"""Length of shifts, deviation of their blur and largest shift of corners, as shares of the shorter side."""
PIXELS = (0.6, 0.5, 0.4, 0.3, 0.25)
"""Share of the side that is left."""
QUALITY = (25, 18, 15, 10, 7)


def contrast(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Move all values towards the channel's mean."""
    mean = images.mean((2, 3), keepdim=True)
    return mean + CONTRAST[severity - 1] * (images - mean)


def elastic_transform(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Move three corners of the middle, and shift all pixels by smooth fields."""
    height, width = images.shape[2:]
    side = min(height, width)
    length, soft, most = (side * share for share in ELASTIC[severity - 1])
    fields = 2 * draws.uniform("fields", 2, height, width).to(images) - 1
    shifts = length * gaussian_blur(fields, max(soft, 1e-3))
    third = side // 3
    corners = torch.tensor([[third, third], [third, -third], [-third, -third]], device=images.device).to(images)
    moved = corners + most * (2 * draws.uniform("corners", 3, 2).to(images) - 1)
    # Of each pixel, where its light comes from: the inverse of what takes the corners where they are moved.
    ones = torch.ones_like(moved[..., :1])
    solved = torch.linalg.solve(torch.cat([moved, ones], -1), corners.expand(len(images), -1, -1))
    y, x = torch.meshgrid(
        torch.arange(height, device=images.device) - height // 2,
        torch.arange(width, device=images.device) - width // 2,
        indexing="ij",
    )
    places = torch.stack([x.to(images) + shifts[:, 0], y.to(images) + shifts[:, 1]], -1)
    source = torch.cat([places, torch.ones_like(places[..., :1])], -1) @ solved[:, None]
    middle = torch.tensor([width // 2, height // 2], device=images.device).to(images)
    size = torch.tensor([width - 1, height - 1], device=images.device).to(images)
    grid = 2 * (source + middle) / size.clamp_min(1) - 1
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)


def pixelate(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Shrink, and enlarge without smoothing."""
    height, width = images.shape[2:]
    share = PIXELS[severity - 1]
    small = F.interpolate(images, (max(1, int(share * height)), max(1, int(share * width))), mode="area")
    return F.interpolate(small, (height, width), mode="nearest-exact")


def jpeg_compression(images: Float[Tensor, "b c h w"], severity: int, draws: Draws) -> Float[Tensor, "b c h w"]:
    """Compress, colour images as such, those of other numbers of channels each channel by itself."""
    pixels = (255 * images).round().clamp(0, 255).to("cpu", torch.uint8)
    colour = pixels.shape[1] == 3
    flat = pixels.movedim(1, -1) if colour else pixels.flatten(0, 1)
    decoded = torch.from_numpy(np.stack([_compressed(one, QUALITY[severity - 1]) for one in flat.numpy()]))
    back = decoded.movedim(-1, 1) if colour else decoded.view(pixels.shape)
    return back.to(images.device).to(images) / 255


def _compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "jpeg", quality=quality)
        with Image.open(file, formats=("jpeg",)) as image:
            return np.asarray(image)
