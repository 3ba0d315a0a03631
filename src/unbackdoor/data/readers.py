"""`read_images`: one function for every source of labelled images.

What a source is, is told by its content: a folder with parquet files, a folder of class folders, a parquet
file, a NumPy archive; or by its name: the embedded digits, a data set on the Hugging Face hub. Each kind has
its reader in a file of its own; here they are chosen, their splits resolved, and what they decode is kept for
the next time.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import torch

from unbackdoor.data import cache as kept
from unbackdoor.data.digits import read_digits
from unbackdoor.data.divide import part_rows
from unbackdoor.data.hub import HubSet
from unbackdoor.data.image_folder import SUFFIXES, ImageFolder
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_classes, reason_of
from unbackdoor.data.numpy_archive import NumpyArchive
from unbackdoor.data.parquet import ParquetFiles, parquet_files
from unbackdoor.data.splits import Reader, choose_split
from unbackdoor.errors import DataError, InputError

SPLITS = ("train", "test", "any")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_FILE_SUFFIXES = SUFFIXES | {
    ".parquet",
    ".npz",
    ".npy",
    ".arrow",
    ".csv",
    ".zip",
    ".tar",
    ".gz",
    ".pkl",
    ".mat",
}


def read_images(source: str | Path, split: str, *, cache: Path | None = None) -> ImageSet:
    """Read labelled images.

    Args:
        source: one of: "digits" (scikit-learn's, at 32 x 32); a folder of parquet files in Hugging Face's
            layout, or one such file; a folder of images, a folder a class, optionally below `train/` and
            `test/`; a NumPy `.npz` archive with `images` and `labels`, or `x_train`, `y_train`, `x_test`,
            `y_test`; the name of a data set on the Hugging Face hub. Only the last uses the network.
        split: "train"; "test" (the validation split where there is no test split); "any" (the training split,
            or all of a source without splits). A source without splits is divided into four fifths and one
            fifth, class by class, in a way that does not depend on the order of its rows.
        cache: folder for decoded images; by default `$UNBACKDOOR_CACHE` or `unbackdoor` in the user's cache
            folder.

    Returns:
        The images, uint8 (N, C, H, W) in `channels_last` memory format, grey ones with one channel, named
        after the source's last path component and its split.

    Raises:
        DataError: a source that is not there, cannot be read, is refused for safety, or lacks the split;
            images of more than one size; fewer than two classes; missing labels.
        InputError: an unknown `split`.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if source == "digits":
        return _channels_last(read_digits(split))
    reader = find_reader(source)
    chosen = choose_split(split, reader.splits, str(source))
    part = split if chosen is None and split != "any" else None
    name = f"{reader.name or 'images'}/{chosen or split}"
    folder = kept.default_folder() if cache is None else Path(cache)
    content = reader.content_hash()
    key = None if content is None else kept.cache_key(content, chosen, part)
    images = None if key is None else kept.load(folder, key, name)
    if images is None:
        images = _channels_last(replace(_read(reader, chosen, part, str(source)), name=name))
        # Files that changed while they were read must not be kept under the hash of what they were.
        if key is not None and reader.content_hash() == content:
            kept.store(folder, key, images)
    return images


def _read(reader: Reader, chosen: str | None, part: str | None, source: str) -> ImageSet:
    images = reader.read(chosen)
    check_classes(images.labels, source)
    if part is not None:
        images = images.subset(part_rows(images, "test" if part == "test" else "train"))
        check_classes(images.labels, f"the {part} part of {source}")
    return images


def _channels_last(images: ImageSet) -> ImageSet:
    return replace(images, images=images.images.contiguous(memory_format=torch.channels_last))


def find_reader(source: str | Path) -> Reader:
    """Return the reader for a source, by its content.

    Raises:
        DataError: nothing is there, or nothing that holds images.
    """
    try:
        path = Path(source).expanduser()
        is_folder, is_file, exists = path.is_dir(), path.is_file(), path.exists()
        start = _start(path) if is_file else b""
    except (OSError, ValueError, RuntimeError) as error:  # no permission; a null byte; no such user's home
        raise DataError(f"cannot open {str(source)!r}: {reason_of(error)}; name a file or folder") from error
    if is_folder:
        return ParquetFiles(path, str(source)) if parquet_files(path) else ImageFolder(path, str(source))
    if is_file:
        return _file_reader(path, start, str(source))
    if exists:
        raise DataError(f"{source} is neither a file nor a folder; name one of these")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(source) or path.suffix.lower() in _FILE_SUFFIXES:
        raise DataError(f"no such file or folder: {source}; check the spelling")
    return HubSet(source)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _file_reader(path: Path, start: bytes, source: str) -> Reader:
    """Return the reader for a file that begins with `start`."""
    if start.startswith(b"PAR1"):
        return ParquetFiles(path, source)
    if start.startswith(b"PK"):
        return NumpyArchive(path, source)
    if start.startswith(b"\x93NUMPY"):
        raise DataError(
            f"{source} is one array without labels; save both with numpy.savez(path, images=..., labels=...)"
        )
    if start.startswith(b"\x80"):
        raise DataError(
            f"{source} is a pickle, which can run code and is never opened; save its arrays with"
            " numpy.savez(path, images=..., labels=...)"
        )
    raise DataError(
        f"{source} is neither a parquet file nor a NumPy .npz archive; name one of these, or a folder of"
        " images with a folder a class"
    )
