"""Transforms that move pixels: crops, flips, shifts and rotations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from unbackdoor.data.augment.transform import Draw, Transform, happens, require_probability, uniform
from unbackdoor.errors import InputError


@dataclass(frozen=True, kw_only=True)
class PadCrop(Transform):
    """Surround the image with zeros and cut out a random piece of the original size.

    Attributes:
        padding: width of the border, in pixels; each image is shifted by up to as many in both directions.
    """

    padding: int = 4

    moves_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise InputError(f"PadCrop: padding must not be negative, found {self.padding}")

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `rows` and `columns`: where the piece begins in the padded image, 0 to 2 * padding."""
        return _draw_window(shape[0], (self.padding, self.padding), generator)

    def _apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        return _window(images, draw["rows"], draw["columns"], (self.padding, self.padding))


@dataclass(frozen=True, kw_only=True)
class Translate(Transform):
    """Shift the image by a whole number of pixels; what is left bare is zero.

    Attributes:
        fraction: the largest shift, as a fraction of height and width in [0, 1], rounded down to pixels.
    """

    fraction: float = 0.1

    moves_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise InputError(f"Translate: fraction must lie in [0, 1], found {self.fraction}")

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `rows` and `columns`: how far the image moves up and left, plus the largest shift."""
        return _draw_window(shape[0], self._margins(shape[2], shape[3]), generator)

    def _apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        margins = self._margins(images.shape[2], images.shape[3])
        return _window(images, draw["rows"], draw["columns"], margins)

    def _margins(self, height: int, width: int) -> tuple[int, int]:
        return int(self.fraction * height), int(self.fraction * width)


@dataclass(frozen=True, kw_only=True)
class Flip(Transform):
    """Mirror the image, left to right.

    Attributes:
        probability: that an image is mirrored, in [0, 1].
    """

    probability: float = 0.5

    moves_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_probability(self, self.probability)

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `flipped`: whether each image is mirrored."""
        return {"flipped": happens(shape[0], self.probability, generator)}

    def _apply(self, images: Shaped[Tensor, "b c h w"], draw: Draw) -> Shaped[Tensor, "b c h w"]:
        # Choosing whole images among both versions copies long runs of memory: three times as fast as where.
        pixels = images.permute(0, 2, 3, 1)
        both = torch.cat((pixels, pixels.flip(2)))
        count = len(images)
        chosen = torch.arange(count, device=images.device) + count * draw["flipped"]
        return both.index_select(0, chosen).permute(0, 3, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Rotate(Transform):
    """Turn the image about its centre, with bilinear interpolation; what is left bare is zero.

    Attributes:
        degrees: the largest angle; each image turns by an angle drawn evenly from -degrees to degrees.
    """

    degrees: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.degrees <= 360:
            raise InputError(f"Rotate: degrees must lie in [0, 360], found {self.degrees}")

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `degrees`: the angle of each image, counter-clockwise."""
        return {"degrees": uniform(shape[0], -self.degrees, self.degrees, generator)}

    def _apply(self, images: Float[Tensor, "b c h w"], draw: Draw) -> Float[Tensor, "b c h w"]:
        height, width = images.shape[2:]
        angle = torch.deg2rad(draw["degrees"]).view(-1, 1, 1)
        x, y = _coordinates(images)
        # The angle is one of pixels, the coordinates are in half sides: hence the aspect ratio.
        columns = torch.cos(angle) * x - torch.sin(angle) * y * (height / width)
        rows = torch.sin(angle) * x * (width / height) + torch.cos(angle) * y
        return _sample(images, rows, columns, "zeros")


@dataclass(frozen=True, kw_only=True)
class ResizeCrop(Transform):
    """Cut out a random piece and enlarge it to the original size, with bilinear interpolation.

    Every piece has just the area drawn: where a long piece of that area would not fit into the image, the
    ratio is drawn from those that do. At the piece's border, the interpolation sees the pixels around it.

    Attributes:
        scale: smallest and largest area of the piece, as a fraction of the image's, in (0, 1].
        ratio: smallest and largest ratio of width to height, relative to the image's own (so that (1, 1)
            never distorts); evenly drawn on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"ResizeCrop: scale must be two ascending numbers in (0, 1], found {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise InputError(f"ResizeCrop: ratio must be two ascending positive numbers, found {self.ratio}")

    def draw(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> Draw:
        """Draw `top`, `left`, `height`, `width` of the piece, as fractions of the image's sides."""
        batch = shape[0]
        area = uniform(batch, *self.scale, generator)
        # Both sides fit into the image as long as area <= ratio <= 1 / area.
        limit = -area.log()
        low = torch.full_like(area, math.log(self.ratio[0])).clamp(-limit, limit)
        high = torch.full_like(area, math.log(self.ratio[1])).clamp(-limit, limit)
        ratio = (low + (high - low) * uniform(batch, 0, 1, generator)).exp()
        height, width = (area / ratio).sqrt().clamp(max=1), (area * ratio).sqrt().clamp(max=1)
        top = (1 - height) * uniform(batch, 0, 1, generator)
        left = (1 - width) * uniform(batch, 0, 1, generator)
        return {"top": top, "left": left, "height": height, "width": width}

    def _apply(self, images: Float[Tensor, "b c h w"], draw: Draw) -> Float[Tensor, "b c h w"]:
        top, left, height, width = (draw[key].view(-1, 1, 1) for key in ("top", "left", "height", "width"))
        x, y = _coordinates(images)
        return _sample(images, height * y + 2 * top + height - 1, width * x + 2 * left + width - 1, "border")


def _draw_window(batch: int, margins: tuple[int, int], generator: torch.Generator) -> Draw:
    rows, columns = (
        torch.randint(0, 2 * margin + 1, (batch,), generator=generator, device=generator.device) for margin in margins
    )
    return {"rows": rows, "columns": columns}


def _window(
    images: Shaped[Tensor, "b c h w"],
    rows: Int[Tensor, " b"],
    columns: Int[Tensor, " b"],
    margins: tuple[int, int],
) -> Shaped[Tensor, "b c h w"]:
    """Cut a window of the images' own size out of each zero-padded image, beginning at its row and column."""
    result: Tensor = _Window.apply(images, rows, columns, margins)  # type: ignore[no-untyped-call]
    return result


class _Window(torch.autograd.Function):
    """`_window` with its own backward pass: that of the indexing would hold the gradients of all windows."""

    @staticmethod
    def forward(images: Tensor, rows: Tensor, columns: Tensor, margins: tuple[int, int]) -> Tensor:
        batch, channels, height, width = images.shape
        border = (0, 0, margins[1], margins[1], margins[0], margins[0])
        padded = F.pad(images.permute(0, 2, 3, 1), border).contiguous()
        # A view of all windows, of which one an image is copied: each of its rows is one run of memory.
        windows = padded.flatten(2).unfold(1, height, 1).unfold(2, width * channels, channels)
        chosen = windows[torch.arange(batch, device=images.device), rows, columns]
        return chosen.view(batch, height, width, channels).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, rows, columns, ctx.margins = inputs
        ctx.save_for_backward(rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The pixels are shifted back: the window lies as far from the other corner.
        rows, columns = ctx.saved_tensors
        vertical, horizontal = ctx.margins
        back = _window(gradient, 2 * vertical - rows, 2 * horizontal - columns, ctx.margins)
        return back, None, None, None


def _coordinates(images: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "1 1 w"], Float[Tensor, "1 h 1"]]:
    """Return where the pixels' centres lie, from the image's, in half widths (x) and half heights (y)."""
    height, width = images.shape[2:]
    x = (torch.arange(width, device=images.device, dtype=torch.float32) * 2 + 1) / width - 1
    y = (torch.arange(height, device=images.device, dtype=torch.float32) * 2 + 1) / height - 1
    return x.view(1, 1, -1), y.view(1, -1, 1)


def _sample(
    images: Float[Tensor, "b c h w"],
    rows: Float[Tensor, " b #h #w"],
    columns: Float[Tensor, " b #h #w"],
    outside: str,
) -> Float[Tensor, "b c h w"]:
    """Interpolate each image at the given places, in the units of `_coordinates`.

    The places are computed by broadcasting and not by `affine_grid`, whose matrix product loses their
    precision under autocast.
    """
    # Half precision could not even number the pixels of a large image.
    kind = torch.promote_types(images.dtype, torch.float32)
    shape = (len(images), *images.shape[2:])
    grid = torch.stack((columns.expand(shape), rows.expand(shape)), dim=-1).to(kind)
    sampled = F.grid_sample(images.to(kind), grid, mode="bilinear", padding_mode=outside, align_corners=False)
    # The weights of four pixels may add up to a little more than one.
    return sampled.clamp(0, 1).to(images.dtype)
