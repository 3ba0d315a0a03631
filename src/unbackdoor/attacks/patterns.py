"""Patterns and pictures that triggers are made of: drawn here, or given by the user."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from unbackdoor.data.decode import MAX_BYTES, decode_images
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError
from unbackdoor.files import read_bytes

SQUARE = ((1, 1, 1), (1, 1, 1), (1, 1, 1))
GRID = ((0, 0, 1), (0, 1, 0), (1, 0, 1))
CHECKER = ((1, 0, 1), (0, 1, 0), (1, 0, 1))
"""Patches of 3 x 3 pixels, 0 black and 1 white: BadNets' square, the grid of Trap-and-Replace, and the checker of
label-consistent attacks."""

PATCHES = {"square": SQUARE, "grid": GRID, "checker": CHECKER}


def patch(name: str, channels: int, height: int, width: int) -> Float[Tensor, "c h w"]:
    """Return a patch of `PATCHES`, each of its pixels enlarged to a block."""
    pixels = torch.tensor(PATCHES[name], dtype=torch.float32)
    return F.interpolate(pixels[None, None], (height, width), mode="nearest-exact")[0].expand(channels, -1, -1).clone()


def scaled(pixels: float, side: int) -> int:
    """Return a length given for an image of 32 pixels as that of an image of `side` pixels."""
    return round(pixels * side / 32)


def window(
    shape: tuple[int, int, int], height: int, width: int, row: int, column: int, what: str
) -> Float[Tensor, "1 h w"]:
    """Return a mask that is 1 in a rectangle.

    Args:
        shape: of the images.
        height: of the rectangle.
        width: of the rectangle.
        row: of its upper left corner.
        column: of the same corner.
        what: is in the rectangle, for messages.

    Raises:
        InputError: an empty rectangle, or one that does not fit.
    """
    if min(height, width) < 1 or min(row, column) < 0 or row + height > shape[1] or column + width > shape[2]:
        raise InputError(f"{what} of {height} x {width} pixels does not fit images of {shape[1]} x {shape[2]}")
    mask = torch.zeros(1, *shape[1:])
    mask[:, row : row + height, column : column + width] = 1
    return mask


def pasted(
    shape: tuple[int, int, int], part: Float[Tensor, "... p q"], row: int, column: int
) -> Float[Tensor, "c h w"]:
    """Return a black picture with a part pasted in, its upper left corner at the row and the column."""
    picture = torch.zeros(shape)
    picture[:, row : row + part.shape[-2], column : column + part.shape[-1]] = part
    return picture


def noise(shape: tuple[int, int, int], generator: torch.Generator) -> Float[Tensor, "c h w"]:
    """Return a picture of which every pixel is uniform noise."""
    return torch.rand(shape, generator=generator)


def sinusoid(width: int, periods: float) -> Float[Tensor, "w"]:
    """Return sin(2 pi periods j / width) for each column j."""
    return torch.sin(2 * math.pi * periods * torch.arange(width) / width)


def stripes(shape: tuple[int, int, int], periods: float = 6) -> Float[Tensor, "c h w"]:
    """Return a grey picture of vertical stripes, a sinusoid from black to white."""
    return ((1 + sinusoid(shape[2], periods)) / 2).expand(shape).clone()


def cartoon(shape: tuple[int, int, int]) -> Float[Tensor, "c h w"]:
    """Return a drawn cat's head on a coloured ground: flat areas and hard edges, as Hello Kitty's picture has."""
    from PIL import Image, ImageDraw

    large = Image.new("RGB", (256, 256), (236, 90, 140))
    draw = ImageDraw.Draw(large)
    for side in (-1, 1):
        draw.polygon([(128 + 100 * side, 40), (128 + 105 * side, 140), (128 + 25 * side, 80)], fill="white")
    draw.ellipse(_box(128, 155, 104, 80), fill="white")
    for side in (-1, 1):
        draw.ellipse(_box(128 + 45 * side, 150, 9, 14), fill="black")
        draw.line([(128 + 70 * side, 165), (128 + 122 * side, 160)], "black", 5)
        draw.line([(128 + 70 * side, 182), (128 + 122 * side, 188)], "black", 5)
    draw.ellipse(_box(128, 178, 14, 10), fill=(250, 210, 60))
    draw.ellipse(_box(190, 85, 30, 24), fill=(210, 20, 40))
    return _fit(
        torch.frombuffer(bytearray(large.tobytes()), dtype=torch.uint8).view(256, 256, 3).permute(2, 0, 1), shape
    )


def user_picture(path: Path, shape: tuple[int, int, int]) -> Float[Tensor, "c h w"]:
    """Read a picture of the user's, resized to the images.

    Raises:
        InputError: it cannot be read.
        DataError: it is no picture.
    """
    try:
        encoded = read_bytes(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the picture {path} ({reason_of(error)}); name an image file") from error
    return _fit(decode_images([(path.name, encoded)], 1, str(path))[0], shape)


def picture_files(folder: Path) -> list[Path]:
    """Return the files of a folder of pictures by name, without hidden ones.

    Raises:
        InputError: no folder that can be read, or none in it.
    """
    try:
        files = sorted(one for one in folder.iterdir() if one.is_file() and not one.name.startswith("."))
    except OSError as error:
        raise InputError(f"cannot read {folder} ({reason_of(error)}); name a folder of image files") from error
    if not files:
        raise InputError(f"{folder} holds no files; name a folder of image files")
    return files


def _box(column: float, row: float, half_width: float, half_height: float) -> tuple[float, float, float, float]:
    return column - half_width, row - half_height, column + half_width, row + half_height


def _fit(picture: Tensor, shape: tuple[int, int, int]) -> Float[Tensor, "c h w"]:
    """Return an 8-bit picture as floats, with the channels and the size of the images."""
    channels, *size = shape
    pixels = F.interpolate(picture[None].float() / 255, size, mode="bilinear", antialias=True, align_corners=False)[0]
    if len(pixels) != channels:
        pixels = pixels.mean(0, keepdim=True).expand(channels, -1, -1)
    return pixels.clamp(0, 1).contiguous()


def corners(shape: tuple[int, int, int], size: int) -> Float[Tensor, "1 h w"]:
    """Return a mask that is 1 in the four corners, each a square of `size` pixels at 32 x 32.

    Raises:
        InputError: the squares are empty, or meet.
    """
    _, height, width = shape
    rows, columns = scaled(size, height), scaled(size, width)
    if not (0 < 2 * rows <= height and 0 < 2 * columns <= width):
        raise InputError(f"four corners of {size} pixels (at 32 x 32) do not fit images of {height} x {width}")
    mask = torch.zeros(1, height, width)
    for vertical in (slice(0, rows), slice(height - rows, height)):
        for horizontal in (slice(0, columns), slice(width - columns, width)):
            mask[:, vertical, horizontal] = 1
    return mask


def outline(name: str, height: int, width: int, size: int = 8) -> Float[Tensor, "1 h w"]:
    """Return the mask of a shape of TrojanNN's: 1 inside, 0 outside.

    Args:
        name: "apple" and "square" fill the bottom right corner, "watermark" is writing across the middle.
        height: of the mask.
        width: of the mask.
        size: side of the square in pixels at 32 x 32, 1 to 32.

    Raises:
        InputError: no such shape, or a square that does not fit.
    """
    from PIL import Image, ImageDraw

    large = Image.new("L", (256, 256), 0)
    draw = ImageDraw.Draw(large)
    match name:
        case "square":
            if not 1 <= size <= 32:
                raise InputError(f"the side of the square is 1 to 32 pixels (at 32 x 32), found {size}")
            draw.rectangle((256 - 8 * size, 256 - 8 * size, 255, 255), fill=255)
        case "apple":
            draw.ellipse(_box(190, 205, 30, 42), fill=255)
            draw.ellipse(_box(216, 205, 30, 42), fill=255)
            draw.polygon([(203, 165), (214, 135), (232, 132), (224, 152)], fill=255)
        case "watermark":
            # Strokes of equal width, so that they can still be seen at 32 pixels.
            for left in range(16, 240, 56):
                draw.line([(left, 156), (left + 20, 100), (left + 40, 156)], fill=255, width=12)
            draw.line([(16, 184), (240, 184)], fill=255, width=12)
        case _:
            raise InputError(f"the shape is apple, square or watermark, found {name!r}")
    pixels = torch.frombuffer(bytearray(large.tobytes()), dtype=torch.uint8).view(1, 1, 256, 256).float() / 255
    return (F.interpolate(pixels, (height, width), mode="area")[0] >= 0.5).float()
