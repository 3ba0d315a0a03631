"""Tables with an image and a label column, read through Hugging Face `datasets`: parquet files and hub sets.

Both take one path: `datasets` finds the columns' meaning, Arrow yields rows, and Pillow decodes here, so that a
broken image is named. Local files are opened with `datasets` in offline mode: it otherwise reports each load to a
counter on the network.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from unbackdoor.data.decode import decode_images
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_highest, check_labels, numbered, reason_of
from unbackdoor.errors import DataError, UnbackdoorError
from unbackdoor.text import clean_text

if TYPE_CHECKING:
    from datasets import ClassLabel, Dataset

# Rows that are in memory at a time.
BATCH = 256


class Part(Protocol):
    """One split of a source.

    Attributes:
        features: what the columns mean, as `datasets` tells it; None if it cannot.
    """

    features: Mapping[str, Any] | None

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """Yield Arrow tables of at most `BATCH` rows, with these columns alone."""


class DatasetPart:
    """A split that `datasets` keeps on disk.

    Args:
        dataset: with images that need not be encoded files.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.features: Mapping[str, Any] | None = dataset.features
        self._dataset = dataset

    def batches(self, columns: list[str]) -> Iterator[Any]:
        """See `Part`; images are left encoded."""
        from datasets import Image

        part = self._dataset.select_columns(columns)
        for name in columns:
            if isinstance(part.features[name], Image):
                part = part.cast_column(name, Image(decode=False))
        yield from part.with_format("arrow").iter(BATCH)


def read_rows(parts: Mapping[str | None, Part], split: str | None, rows: int, source: str) -> ImageSet:
    """Return the images and labels of one split.

    Args:
        parts: the source's splits; the others only tell how many classes there are, if these have no names.
        split: the one to read.
        rows: how many rows it is said to have.
        source: what to call it in messages.

    Raises:
        DataError: columns that cannot be found, labels or image bytes that are missing or wrong, unreadable
            files.
    """
    from datasets import ClassLabel

    part, features = parts[split], _features(parts[split], source)
    image, label = image_column(features, source), label_column(features, source)
    labels: list[np.ndarray] = []
    batches = read_in(part.batches([image, label]), source)
    images = decode_images(_encoded(batches, image, label, labels, source), rows, source)
    numbers = np.concatenate(labels)
    if isinstance(features[label], ClassLabel):
        class_names = names_of(features[label], source)
    else:
        others = [_all_labels(other, label, source).max(initial=-1) for name, other in parts.items() if name != split]
        class_names = numbered(1 + int(max([numbers.max(), *others])))
    return ImageSet(images=images, labels=check_labels(numbers, source), class_names=class_names, name=source)


def names_of(label: ClassLabel, source: str) -> tuple[str, ...]:
    """Return the names of classes that a column declares; raise DataError if one is no text."""
    odd = [name for name in label.names if not isinstance(name, str)]
    if odd:
        raise DataError(f"{source} names a class {odd[0]!r}, which is no text; correct its metadata")
    return tuple(label.names)


def _features(part: Part, source: str) -> Mapping[str, Any]:
    """Return what the columns of a split mean; raise DataError if it does not say."""
    if part.features is None:
        raise DataError(f"{source} does not say what its columns are; save it as parquet files and name their folder")
    return part.features


def _all_labels(part: Part, label: str, source: str) -> Int[np.ndarray, "n"]:
    """Return the labels of a split (see `label_numbers`)."""
    labels = [label_numbers(batch, label, source) for batch in read_in(part.batches([label]), source)]
    return np.concatenate([*labels, np.empty(0, dtype=np.int64)])


def check_kept_classes(
    parts: Mapping[str | None, Part], split: str | None, kept: Bool[Tensor, "n"], source: str
) -> None:
    """Refuse to leave out the highest class where the classes have no names.

    Args:
        parts: of all splits, by name.
        split: of which rows are left out.
        kept: its other rows.
        source: for messages.

    Raises:
        InputError: so many classes would no longer be known.
        DataError: labels that cannot be read, or columns without a meaning.
    """
    from datasets import ClassLabel

    features = _features(parts[split], source)
    label = label_column(features, source)
    if not isinstance(features[label], ClassLabel):
        others = [_all_labels(part, label, source).max(initial=-1) for name, part in parts.items() if name != split]
        labels = _all_labels(parts[split], label, source)
        before, after = (int(max([some.max(initial=-1), *others])) for some in (labels, labels[kept.numpy()]))
        check_highest(before, after, source)


def image_column(features: Mapping[str, Any], source: str) -> str:
    """Return the column of images: declared as such, or the only one of bytes."""
    from datasets import Image

    declared = [name for name, feature in features.items() if isinstance(feature, Image)]
    candidates = declared or [name for name, feature in features.items() if _holds_bytes(feature)]
    return _only(candidates, ("image", "img"), "images", features, source)


def label_column(features: Mapping[str, Any], source: str) -> str:
    """Return the column of labels: declared as such, or the only one of whole numbers."""
    from datasets import ClassLabel, Value

    declared = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    candidates = declared or [
        name
        for name, feature in features.items()
        if isinstance(feature, Value) and feature.dtype.startswith(("int", "uint"))
    ]
    return _only(candidates, ("label", "labels", "fine_label"), "labels", features, source)


def _only(candidates: list[str], usual: tuple[str, ...], what: str, features: Mapping[str, Any], source: str) -> str:
    if len(candidates) == 1:
        return candidates[0]
    if named := [name for name in usual if name in candidates]:
        return named[0]
    columns = ", ".join(clean_text(str(name)) for name in features) or "none"
    found = "several columns" if candidates else "no column"
    raise DataError(
        f"{source} has {found} that could hold the {what}, among: {columns}; images are a column of bytes and"
        f" labels one of whole numbers: call yours {usual[0]!r} and save it again"
    )


def _holds_bytes(feature: Any) -> bool:
    held = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(held, "dtype", None) in ("binary", "large_binary")


def _encoded(
    batches: Iterator[Any], image: str, label: str, labels: list[np.ndarray], source: str
) -> Iterator[tuple[str, bytes]]:
    """Yield what to call each image and its bytes; append each batch's labels to `labels`."""
    row = 0
    for batch in batches:
        labels.append(label_numbers(batch, label, source))
        for value in batch.column(image):
            yield encoded_image(value, row, source)
            row += 1


def encoded_image(value: Any, row: int, source: str) -> tuple[str, bytes]:
    """Return what to call the image in a cell of row `row`, and its bytes.

    Raises:
        DataError: it has none, or what it should be called is no text.
    """
    with reported(source):
        cell = value.as_py()
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    where = f"{clean_text(str(path))} (row {row})" if path else f"(row {row})"
    if not isinstance(content, bytes):
        # The path is never followed: it is a stranger's, and may name any file here or elsewhere.
        raise DataError(
            f"image {where} of {source} has no bytes, only the name of a file at best; save the"
            " data set with its images in it, or name the folder of the images"
        )
    return where, content


def label_numbers(batch: Any, label: str, source: str) -> np.ndarray:
    """Return the checked labels of a batch of rows.

    Raises:
        DataError: one is missing, or they are no class numbers.
    """
    column = batch.column(label)
    if column.null_count:
        raise DataError(f"{source} has rows whose label is missing; leave those rows out and save it again")
    labels: np.ndarray = column.to_numpy(zero_copy_only=False)
    check_labels(labels, source)
    return labels


def read_in(batches: Iterable[Any], source: str) -> Iterator[Any]:
    """Yield what other libraries read; what they raise becomes a `DataError`, and not what is done meanwhile."""
    with reported(source):
        yield from batches


@contextmanager
def reported(source: str) -> Iterator[None]:
    """Turn whatever the readers of other libraries raise on hostile files into a `DataError`."""
    try:
        yield
    except UnbackdoorError:
        raise
    except Exception as error:
        raise DataError(f"cannot read {source}: {reason_of(error)}; fetch or write it anew") from error


@contextmanager
def quiet(*, offline: bool) -> Iterator[None]:
    """Silence progress bars and what is logged and then raised; `offline`: keep off the network."""
    import datasets.utils
    import huggingface_hub.utils

    logs = [logging.getLogger("datasets"), logging.getLogger("huggingface_hub")]
    levels = [log.level for log in logs]
    bars = [lib for lib in (datasets.utils, huggingface_hub.utils) if not lib.are_progress_bars_disabled()]
    was_offline = datasets.config.HF_HUB_OFFLINE
    for log in logs:
        log.setLevel(logging.CRITICAL)
    for lib in bars:
        lib.disable_progress_bars()
    datasets.config.HF_HUB_OFFLINE = offline or was_offline
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline
        for lib in bars:
            lib.enable_progress_bars()
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
