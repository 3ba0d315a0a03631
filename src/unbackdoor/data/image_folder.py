"""Images in a folder a class, optionally below `train/` and `test/` (or `val/`, `validation/`).

The folder is listed here and not through Hugging Face's imagefolder, which gives the images of a single class
no labels at all (so nothing could be said about it), lets metadata files in the folder redefine it, and took
4.5 s to list 6,000 files that are listed here in 0.06 s.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from unbackdoor.data.cache import content_hash
from unbackdoor.data.decode import MAX_BYTES, decode_images
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_rows, reason_of
from unbackdoor.data.splits import source_name, split_named
from unbackdoor.errors import DataError, InputError
from unbackdoor.files import read_bytes, write_bytes
from unbackdoor.text import clean_text

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(
    {
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".bmp",
        ".webp",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".gif",
        ".tif",
        ".tiff",
    }
)


class ImageFolder:
    """Reader of a folder of images.

    Args:
        path: the folder.
        source: what to call it in messages.

    Raises:
        DataError: no images in class folders below it, or folders that cannot be listed.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.name = source_name(path)
        self.source = source
        self._root = path
        # The files of each split (None: there are no splits) by class.
        self._classes: dict[str | None, dict[str, list[Path]]] = {}
        try:
            self._list()
        except OSError as error:
            raise DataError(f"cannot list {source}: {reason_of(error)}; check that you may read it") from error
        if not any(self._classes.values()):
            raise DataError(
                f"{source} holds neither parquet files nor images in a folder a class; arrange it as"
                " CLASS/IMAGE.png, optionally below train/ and test/, or name a file in it"
            )
        self.splits = [split for split in self._classes if split is not None]
        # Over all splits, so that a class has one number even where a split lacks some other class.
        self._class_names = sorted({name for classes in self._classes.values() for name in classes})

    def content_hash(self) -> str:
        """Return the hash of all images of all splits with their places."""
        listed = [path for classes in self._classes.values() for paths in classes.values() for path in paths]
        for path in listed:
            self._check_bytes(path)
        return content_hash({path.relative_to(self._root).as_posix(): path for path in listed})

    def read(self, split: str | None) -> ImageSet:
        """Return the images of `split`, class by class, each class by path."""
        numbers = {name: number for number, name in enumerate(self._class_names)}
        listed = [(numbers[name], path) for name, path in self._listed(split)]
        return ImageSet(
            images=decode_images(
                contents_of([path for _, path in listed], self._root, self.source), len(listed), self.source
            ),
            labels=torch.tensor([number for number, _ in listed]),
            class_names=tuple(self._class_names),
            name=self.source,
        )

    def copy_kept(self, split: str | None, kept: Bool[Tensor, "n"], folder: Path) -> None:
        """Copy the files of the kept rows, and all of the other splits, to the same places (see `Reader.copy_kept`)."""
        listed = self._listed(split)
        check_rows(len(listed), kept, self.source)
        copied = [one for one, keep in zip(listed, kept.tolist(), strict=True) if keep]
        copied += [one for other in self._classes if other != split for one in self._listed(other)]
        if gone := sorted(set(self._class_names) - {name for name, _ in copied}):
            raise InputError(
                f"no image of class {gone[0]} is kept, and a folder without it would number the classes anew; sift with"
                " another method or threshold, or take the data as parquet files, which name all classes"
            )
        for _, path in copied:
            try:
                content = read_bytes(path, MAX_BYTES)
            except (OSError, ValueError) as error:
                raise DataError(
                    f"cannot read image {self._shown(path)} of {self.source}: {reason_of(error)}; check that it is"
                    " there"
                ) from error
            write_bytes(folder / path.relative_to(self._root), content)

    def _listed(self, split: str | None) -> list[tuple[str, Path]]:
        """Return class and path of each image of a split, class by class, each class by path."""
        classes = self._classes[split]
        return [(name, path) for name in sorted(classes) for path in sorted(classes[name])]

    def _list(self) -> None:
        folders = _folders(self._root)
        # Words alone: "test" is a split, "test tubes" a class.
        splits = [
            folder
            for folder in folders
            if folder.name.isalpha() and split_named(folder.name) and _holds_classes(folder)
        ]
        if splits:
            if ignored := [clean_text(folder.name) for folder in folders if folder not in splits]:
                logger.warning("%s: not read, as they lie beside the splits: %s", self.source, ", ".join(ignored))
            for folder in splits:
                merged = self._classes.setdefault(split_named(folder.name), {})
                for name, paths in _classes(folder).items():
                    merged.setdefault(name, []).extend(paths)
        else:
            self._classes[None] = _classes(self._root)

    def _check_bytes(self, path: Path) -> None:
        """Refuse a file that is too large for an image before it is hashed."""
        try:
            size = path.stat().st_size
        except OSError:
            return  # whoever opens it says why it cannot be read
        if size > MAX_BYTES:
            raise DataError(
                f"image {self._shown(path)} of {self.source} has {size:,} bytes, more than {MAX_BYTES:,}; remove it"
            )

    def _shown(self, path: Path) -> str:
        return clean_text(path.relative_to(self._root).as_posix())


def contents_of(paths: Sequence[Path], root: Path, source: str) -> Iterator[tuple[str, bytes]]:
    """Yield where each image lies below `root`, and its bytes.

    Args:
        paths: of the images.
        root: a folder that they are in.
        source: what to call it in messages.

    Raises:
        DataError: one that cannot be read.
    """
    for path in paths:
        where = clean_text(path.relative_to(root).as_posix())
        try:
            content = read_bytes(path, MAX_BYTES)
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot read image {where} of {source}: {reason_of(error)}; check that it is there"
            ) from error
        yield where, content


def _folders(parent: Path) -> list[Path]:
    """Return the folders directly below `parent` by name, without hidden ones and archivers' litter."""
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _holds_classes(folder: Path) -> bool:
    """Tell a split from a class that happens to be called "train": a class has images directly in it."""
    deep = any(True for child in _folders(folder) for _ in images_below(child))
    return deep and not any(_is_image(entry) for entry in folder.iterdir())


def _classes(folder: Path) -> dict[str, list[Path]]:
    """Return the images at any depth below each folder in `folder`; folders without images are no classes."""
    found = {child.name: list(images_below(child)) for child in _folders(folder)}
    return {name: paths for name, paths in found.items() if paths}


def images_below(folder: Path) -> Iterator[Path]:
    """Yield the images at any depth below a folder, without those in hidden folders and archivers' litter."""
    for parent, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith((".", "__"))]
        yield from (path for path in (Path(parent, name) for name in names) if _is_image(path))


def _raise(error: OSError) -> None:
    raise error


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
