"""Images that come in, of which nobody knows the classes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from unbackdoor.data.decode import decode_images
from unbackdoor.data.image_folder import contents_of, images_below
from unbackdoor.data.limits import reason_of
from unbackdoor.data.parquet import parquet_files
from unbackdoor.data.readers import read_images
from unbackdoor.errors import DataError
from unbackdoor.text import clean_text


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Images without labels.

    Attributes:
        images: uint8 pixels.
        names: of each image: where its file lies in the folder, or the number of its row.
        name: of the source.
    """

    images: UInt8[Tensor, "n c h w"]
    names: tuple[str, ...]
    name: str

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def digest(self) -> str:
        """Return the SHA-256 of the pixels and their shape (64 hexadecimal digits)."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.contiguous().numpy().data)
        return digest.hexdigest()


def read_inputs(source: str) -> Inputs:
    """Read images without asking for their classes.

    Args:
        source: a folder of images, at any depth and in the order of their paths; or what `read_images` takes besides,
            of which the training split is read, or all of a source without splits, and labels play no part.

    Raises:
        DataError: nothing that holds images, or images that cannot be read.
    """
    path = Path(source).expanduser()
    try:
        is_folder = path.is_dir() and not parquet_files(path)
        listed = sorted(images_below(path)) if is_folder else []
    except (OSError, ValueError) as error:
        raise DataError(f"cannot list {clean_text(source)}: {reason_of(error)}; check that you may read it") from error
    if not is_folder:
        rows = read_images(source, "any")
        return Inputs(images=rows.images, names=tuple(map(str, range(len(rows)))), name=rows.name)
    if not listed:
        raise DataError(f"{clean_text(source)} holds neither parquet files nor images; name a folder of images")
    images = decode_images(contents_of(listed, path, source), len(listed), source)
    names = tuple(one.relative_to(path).as_posix() for one in listed)
    return Inputs(images=images, names=names, name=clean_text(path.name) or "images")
