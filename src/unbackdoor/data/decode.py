"""From encoded images (PNG, JPEG, ...) to one uint8 tensor.

One thread decodes: on CIFAR-10's small PNGs the interpreter lock made two threads slower than one (4.6 s
against 2.6 s for 50,000 images).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from unbackdoor.data.limits import check_size, reason_of
from unbackdoor.errors import DataError

# Pillow also knows formats that start other programs (EPS) or that nobody has looked at for long: not these.
FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "GIF", "TIFF")

# Of one image: 8192 x 8192. A few kilobytes can declare, and unpack to, far more.
MAX_PIXELS = 2**26
# As many pixels with four uncompressed channels.
MAX_BYTES = 2**28


def decode_images(images: Iterable[tuple[str, bytes]], count: int, source: str) -> UInt8[Tensor, "n c h w"]:
    """Decode images of one size into a tensor in `channels_last` memory format.

    Args:
        images: pairs of what to call an image in messages and its encoded bytes.
        count: how many there are said to be.
        source: what to call the data set in messages.

    Returns:
        Pixels 0 to 255; one channel if every image is grey, else three. Alpha is dropped.

    Raises:
        DataError: an image that cannot be decoded or is too large, images of two sizes, more or fewer images
            than `count`, or more pixels than the machine has memory for.
    """
    pixels: np.ndarray | None = None
    first = ""
    row = -1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for row, (where, encoded) in enumerate(images):
            image = _decode(encoded, where, source)
            if pixels is None:
                first = where
                check_size(count * image.size, source)
                pixels = np.empty((count, *image.shape), np.uint8)
            if row >= count:
                raise DataError(f"{source} holds more than the {count} images that it declares; write it anew")
            if image.shape[:2] != pixels.shape[1:3]:
                raise DataError(
                    f"the images of {source} are not of one size: {first} is {_size(pixels[0])} and {where}"
                    f" is {_size(image)} pixels (width x height); resize them all first"
                )
            if image.shape[2] > pixels.shape[3]:
                # The images so far were grey and this one is not: grey becomes RGB, once.
                check_size(3 * pixels.size, source)
                pixels = np.repeat(pixels, 3, axis=3)
            pixels[row] = image
    if pixels is None:
        raise DataError(f"{source} holds no images; name a data set with images of at least two classes")
    if row + 1 < count:
        raise DataError(f"{source} declares {count} images but holds {row + 1}; fetch or write it anew")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _decode(encoded: bytes, where: str, source: str) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of one image: (H, W, 1) if it is grey, else (H, W, 3)."""
    try:
        if len(encoded) > MAX_BYTES:
            raise ValueError(f"it has {len(encoded):,} bytes, more than {MAX_BYTES:,}")
        pixels = _pixels(encoded)
    except UnidentifiedImageError as error:
        raise DataError(
            f"cannot decode image {where} of {source}: it is none of {', '.join(FORMATS)}; replace or remove it"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything on hostile bytes
        raise DataError(f"cannot decode image {where} of {source}: {reason_of(error)}; replace or remove it") from error
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def _pixels(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
        # Only the header has been read so far.
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"it has {opened.width}x{opened.height} pixels, more than {MAX_PIXELS:,}")
        # As Hugging Face's datasets does: photographs are turned the way they were taken.
        image = ImageOps.exif_transpose(opened) if "exif" in opened.info else opened
        if image.mode == "RGB":
            return np.asarray(image)
        if image.mode in ("L", "1", "LA"):
            return np.asarray(image.convert("L"))
        if image.mode == "I" or image.mode.startswith("I;16"):
            return _from_16_bits(np.asarray(image))
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of unknown range (save it as 8-bit)")
        if image.mode == "P":
            # Pillow warns about palettes with transparency unless they pass through RGBA.
            image = image.convert("RGBA")
        return np.asarray(image.convert("RGB"))


def _from_16_bits(values: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    """Return 0 to 65535 as 0 to 255, rounded."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65_535:
        raise ValueError("its grey values are outside 0 to 65535")
    return ((wide * 255 + 32_767) // 65_535).astype(np.uint8)
