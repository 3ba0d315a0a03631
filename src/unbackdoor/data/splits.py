"""What the readers share: the names of splits, and the interface by which `read_images` talks to a reader."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from jaxtyping import Bool
from torch import Tensor

from unbackdoor.data.image_set import ImageSet
from unbackdoor.errors import DataError

_SPLIT_WORD = re.compile(r"(train|training|test|testing|validation|valid|val)(?![a-z])", re.IGNORECASE)


class Reader(Protocol):
    """A source that has been looked at but not yet read."""

    @property
    def name(self) -> str:
        """The source's last path component."""

    @property
    def splits(self) -> Collection[str]:
        """Which of "train", "test", "validation" it has; empty if it is one undivided set."""

    def content_hash(self) -> str | None:
        """Return a hash of everything that `read` depends on; None if that cannot be told."""

    def read(self, split: str | None) -> ImageSet:
        """Return all images of `split`, or of an undivided source; their name is the caller's business."""

    def copy_kept(self, split: str | None, kept: Bool[Tensor, "n"], folder: Path) -> None:
        """Write the kept rows of `split`, and all of the other splits, to an empty folder, in the source's layout.

        Args:
            split: the one that `kept` is about.
            kept: of each row in the order of `read`.
            folder: an empty one.

        Raises:
            DataError: there are more or fewer rows than choices by now, or the source cannot be read.
            InputError: a class that the source has would be gone without a word.
            OutputError: a file cannot be written.
        """


def source_name(path: Path) -> str:
    """Return the last component of a path, as it was given unless that says nothing."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def split_named(word: str) -> str | None:
    """Return the split that a file or folder name such as `train-00000-of-00001` begins with."""
    match = _SPLIT_WORD.match(word)
    if match is None:
        return None
    found = match[1].lower()
    return "validation" if found.startswith("val") else found.removesuffix("ing")


def choose_split(wanted: str, splits: Collection[str], source: str) -> str | None:
    """Return the split of a source to read for "train", "test" or "any".

    A source without a test split gives its validation split instead, as many published sets keep their test
    labels to themselves. "any" is the training split.

    Returns:
        "train", "test" or "validation"; None if the source has no splits.

    Raises:
        DataError: naming the splits that are there.
    """
    if not splits:
        return None
    for candidate in {"train": ("train",), "test": ("test", "validation"), "any": ("train",)}[wanted]:
        if candidate in splits:
            return candidate
    missing = "test" if wanted == "test" else "training"
    raise DataError(
        f"{source} has no {missing} split; it has: {', '.join(sorted(splits))} (a single file or folder of"
        " classes without splits is divided in a fixed way)"
    )
