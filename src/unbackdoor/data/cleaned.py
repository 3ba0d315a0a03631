"""`write_kept`: some rows of a data set, written in the layout that it came in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from unbackdoor.data.hub import UNDIVIDED
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.numpy_archive import NumpyArchive
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.data.readers import find_reader
from unbackdoor.data.splits import choose_split
from unbackdoor.errors import InputError, OutputError

DIGITS = "digits"
"""The embedded source, which has no layout of its own."""


def check_target(folder: Path, source: str | Path) -> None:
    """Raise OutputError unless `folder` can become a new data set: it is not there, or empty, and not in the source."""
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        inside = folder.resolve().is_relative_to(Path(source).expanduser().resolve()) if source != DIGITS else False
    except OSError as error:
        raise OutputError(f"cannot look into {folder}: {error.strerror}; choose another folder") from error
    if taken:
        raise OutputError(f"{folder} is there and not empty; choose another folder for the cleaned data, or remove it")
    if inside:
        raise OutputError(f"{folder} lies within the data themselves; choose a folder elsewhere for the cleaned data")


def write_kept(source: str | Path, images: ImageSet, kept: Bool[Tensor, "n"], folder: Path) -> Path:
    """Write the kept rows of a source to a new folder, complete or not at all, and return what names them as a source.

    Parquet files keep their names and all their columns, image folders their files as they are, byte by byte, a NumPy
    archive its name and its arrays; splits other than the one that was read are copied whole. Data of the hub become a
    parquet file a split with all their columns, and the digits, which have no layout of their own, one parquet file.

    Args:
        source: as for `read_images`.
        images: what `read_images` made of it with the split "any".
        kept: of each of its rows.
        folder: not there, or empty.

    Raises:
        InputError: no rows are kept, or a class that the source has would be gone without a word.
        DataError: the source changed since it was read.
        OutputError: the folder cannot be written, or is not empty.
    """
    if not bool(kept.any()):
        raise InputError("no rows are left to write; sift with another method or threshold")
    check_target(folder, source)
    reader = None if source == DIGITS else find_reader(source)
    with becoming(folder) as partial:
        if reader is not None:
            reader.copy_kept(choose_split("any", reader.splits, str(source)), kept, partial)
        else:
            rows = images.subset(kept.nonzero().squeeze(1).to(torch.long))
            write_parquet(partial / "data" / f"{UNDIVIDED}-00000-of-00001.parquet", rows, {})
    return folder / reader.name if isinstance(reader, NumpyArchive) else folder


@contextmanager
def becoming(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside `folder`, which takes its place if the block succeeds, and is removed if not.

    Args:
        folder: not there, or empty.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    try:
        yield partial
        try:
            partial.chmod(0o755)
            if folder.exists():
                folder.rmdir()
            partial.rename(folder)
        except OSError as error:
            raise OutputError(f"cannot write {folder}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
