"""Bounds and checks that every reader of image data applies to what strangers wrote."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from unbackdoor.errors import DataError, InputError
from unbackdoor.limits import MAX_CLASSES
from unbackdoor.text import clean_text

# What is assumed where the operating system does not say how much memory there is.
_UNKNOWN_MEMORY = 64 * 2**30
# Of version 2 and of version 1 of Linux's control groups.
_CONTAINER_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def reason_of(error: BaseException) -> str:
    """Return the first line of an exception's message, fit for the middle of a sentence."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = message.strip().splitlines()
    return clean_text(lines[0].rstrip(".")) if lines else type(error).__name__


def physical_memory() -> int:
    """Return the bytes of memory of this machine, or of the container if it is given less."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        physical = _UNKNOWN_MEMORY
    return min([physical, *_container_limits()])


def _container_limits() -> Iterator[int]:
    """Yield the limits that Linux sets to this process's control groups, as a container sees them."""
    for path in _CONTAINER_LIMITS:
        # No such file, or "max".
        with contextlib.suppress(OSError, ValueError):
            yield int(path.read_text())


def check_size(size: int, source: str) -> None:
    """Refuse to hold `size` bytes when they are more than half of the machine's memory.

    The other half is for the second copy that decoding and moving to another device need, and for the model.

    Raises:
        DataError: with both sizes.
    """
    memory = physical_memory()
    if size > memory / 2:
        raise DataError(
            f"{source} takes {size / 2**30:,.0f} GiB when it is unpacked, and this machine has"
            f" {memory / 2**30:,.0f} GiB of memory, half of which is for data; resize the images or take fewer of them"
        )


def check_labels(labels: np.ndarray, source: str) -> Int[Tensor, "n"]:
    """Return whole numbers from outside as labels.

    Args:
        labels: any integer type, shape (N,).
        source: for messages.

    Raises:
        DataError: not whole numbers, negative, or beyond the largest class that is accepted.
    """
    if labels.dtype.kind not in "iu":
        raise DataError(f"the labels of {source} are {labels.dtype}, not whole numbers; number the classes from 0")
    if len(labels) and int(labels.min()) < 0:
        raise DataError(
            f"the labels of {source} go down to {int(labels.min())} (a negative label often means that it is"
            " unknown); leave those images out and number the classes from 0"
        )
    if len(labels) and int(labels.max()) >= MAX_CLASSES:
        raise DataError(
            f"the labels of {source} go up to {int(labels.max())}, and at most {MAX_CLASSES:,} classes are"
            " accepted; number the classes from 0 without gaps"
        )
    return torch.from_numpy(labels.astype(np.int64))


def check_classes(labels: Int[Tensor, "n"], source: str) -> None:
    """Refuse data in which nothing can be told apart.

    Raises:
        DataError: no images, or all of one class.
    """
    if len(labels) == 0:
        raise DataError(f"{source} holds no images; name a data set with images of at least two classes")
    if int(labels.min()) == int(labels.max()):
        raise DataError(
            f"all {len(labels)} images of {source} are of class {int(labels[0])}; a data set needs at least two classes"
        )


def check_rows(rows: int, kept: Bool[Tensor, "n"], source: str) -> None:
    """Refuse to choose among rows by a choice that was made of others.

    Raises:
        DataError: there are more or fewer rows than the choice has.
    """
    if rows != len(kept):
        raise DataError(f"{source} holds {rows} images now and held {len(kept)} when it was read; start again")


def check_highest(before: int, after: int, source: str) -> None:
    """Refuse to leave out every image of the highest class where no names tell how many classes there are.

    Args:
        before: the highest label of all splits.
        after: that of what is left of them.
        source: for the message.

    Raises:
        InputError: they differ.
    """
    if after < before:
        raise InputError(
            f"no image of class {before} is kept, and {source} has no names that tell how many classes there are; sift"
            " with another method or threshold, or name the classes in the data"
        )


def numbered(classes: int) -> tuple[str, ...]:
    """Return the names of classes that have none: "0", "1", ..."""
    return tuple(str(number) for number in range(classes))
