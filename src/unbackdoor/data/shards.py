"""Parquet files that together are too large to be held: one after the other, and each a few rows at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from unbackdoor.data.decode import decode_images
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_highest, check_labels, check_size, numbered
from unbackdoor.data.parquet import ParquetFiles, batches_of, check_declared_classes, check_row_counts, parquet_files
from unbackdoor.data.splits import choose_split
from unbackdoor.data.tables import encoded_image, image_column, label_column, label_numbers, names_of, reported
from unbackdoor.errors import DataError
from unbackdoor.text import clean_text

PIECE = 500
"""Rows that are held at a time: as many as go through a network together."""
HELD = 2 << 30
"""Bytes of images that are held at once, where all rows are, or those from which is learned."""
FEW = 10_000
"""Rows that are held at once whatever their size."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One parquet file.

    Attributes:
        name: its path below the folder of the data set.
        path: where it lies.
        rows: how many it declares.
    """

    name: str
    path: Path
    rows: int


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A folder of parquet files whose rows are read in pieces.

    Attributes:
        folder: in which they lie.
        source: what to call the data set in messages.
        name: for reports.
        shards: its files, by name; at least one row is in them.
        image: the column of images.
        label: the column of labels.
        class_names: one name a class.
        highest_of_others: the highest label of the other splits, -1 of none, where the files do not name the classes;
            None where they do.
    """

    folder: Path
    source: str
    name: str
    shards: tuple[Shard, ...]
    image: str
    label: str
    class_names: tuple[str, ...]
    highest_of_others: int | None = None

    @classmethod
    def of(cls, folder: str | Path) -> Shards:
        """Look at all files of the split that is to be sifted: the training split, or all files if there are no splits.

        Only what files declare is read, unless they do not name their classes: then all labels are.

        Raises:
            DataError: naming the file that cannot be read, or whose columns are not those of the others.
        """
        source = clean_text(str(folder))
        reader = ParquetFiles(Path(folder).expanduser(), source)
        split = choose_split("any", reader.splits, source)
        shards, layout = [], None
        for name, path in reader.files(split).items():
            rows, found = _declared(path, f"{source}/{name}")
            shards.append(Shard(name=name, path=path.absolute(), rows=rows))
            if layout not in (None, found):
                raise DataError(
                    f"{source}/{name} has other columns for images and labels, or other names of classes, than"
                    f" {shards[0].name}; write all files alike, or sift them apart"
                )
            layout = found
        if layout is None or not sum(shard.rows for shard in shards):
            raise DataError(f"{source} holds no images; name a data set with at least one image")
        names, others = layout.class_names, None
        if names is None:
            own, others = (
                max((_highest(path, layout.label, source) for path in files.values()), default=-1)
                for files in (reader.files(split), reader.others(split))
            )
            names = numbered(1 + max(own, others))
        return cls(
            folder=Path(folder).expanduser(),
            source=source,
            name=f"{reader.name}/{split or 'any'}",
            shards=tuple(shards),
            image=layout.image,
            label=layout.label,
            class_names=names,
            highest_of_others=others,
        )

    @property
    def rows(self) -> int:
        """How many rows all files declare."""
        return sum(shard.rows for shard in self.shards)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def first(self, channels: int) -> ImageSet:
        """Return the first row alone, which tells whether a network can take the images.

        Args:
            channels: as of `pieces`.

        Raises:
            DataError: as of `pieces`.
        """
        row = self.at({next(shard.name for shard in self.shards if shard.rows): np.array([0])})
        return replace(row, images=row.images.expand(-1, channels, -1, -1)) if row.shape[0] == 1 else row

    def fitting(self) -> int:
        """Return how many rows fill `HELD`, going by the first one."""
        return max(1, HELD // self.first(1).images.numel())

    def pieces(self, shard: Shard, channels: int) -> Iterator[ImageSet]:
        """Yield the rows of a shard in their order, at most `PIECE` at a time.

        Args:
            shard: one of these.
            channels: grey images are repeated to so many, as they would be beside coloured ones.

        Raises:
            DataError: naming the shard, and the row if it is one that is broken.
        """
        source, labels = f"{self.source}/{shard.name}", list[int]()
        encoded = self._encoded(shard, None, labels)
        for done in range(0, shard.rows, PIECE):
            # Not listed before: a file may have a large image once, and refer to it from every row.
            count = min(PIECE, shard.rows - done)
            images = decode_images(islice(encoded, count), count, source)
            if images.shape[1] == 1:
                images = images.expand(-1, channels, -1, -1)
            numbers = torch.tensor(labels)
            labels.clear()
            images = images.contiguous(memory_format=torch.channels_last)
            yield ImageSet(images=images, labels=numbers, class_names=self.class_names, name=source)
        if next(encoded, None) is not None:
            raise DataError(f"{source} holds more than the {shard.rows} rows that it declares; fetch or write it anew")

    def at(self, rows: Mapping[str, Int[np.ndarray, "m"]]) -> ImageSet:
        """Return the images at some rows of some shards, in the order of the shards and of the rows.

        Args:
            rows: by the shards' names: row numbers within the shard, ascending.

        Raises:
            DataError: as of `pieces`; or no rows are asked for.
        """
        labels: list[int] = []

        def encoded() -> Iterator[tuple[str, bytes]]:
            for shard in self.shards:
                if (wanted := rows.get(shard.name)) is not None and len(wanted):
                    for where, content in self._encoded(shard, wanted, labels):
                        yield f"{where} of {shard.name}", content

        images = decode_images(encoded(), sum(map(len, rows.values())), self.source)
        return ImageSet(
            images=images.contiguous(memory_format=torch.channels_last),
            labels=check_labels(np.array(labels), self.source),
            class_names=self.class_names,
            name=self.name,
        )

    def sample(self, size: int, seed: int) -> ImageSet:
        """Return rows that are drawn from all shards alike: each row is as likely as any other.

        Args:
            size: rows wanted; all rows if there are not more.
            seed: the draw depends on it, and on the names and sizes of the shards.
        """
        if size >= self.rows:
            return self.at({shard.name: np.arange(shard.rows) for shard in self.shards})
        chance = np.random.default_rng(seed)
        # Without the rows' numbers being listed, as there may be thousands of millions.
        drawn = np.sort(chance.choice(self.rows, size, replace=False, shuffle=False))
        ends = np.cumsum([shard.rows for shard in self.shards])
        parts = np.split(drawn, np.searchsorted(drawn, ends[:-1]))
        starts = ends - np.array([shard.rows for shard in self.shards])
        return self.at({shard.name: part - start for shard, part, start in zip(self.shards, parts, starts)})

    def check_kept(self, kept: Sequence[int]) -> None:
        """Refuse to leave out the highest class where the classes have no names.

        Args:
            kept: rows of each class that stay.

        Raises:
            InputError: so many classes would no longer be known.
        """
        if self.highest_of_others is not None:
            stay = max((label for label, count in enumerate(kept) if count), default=-1)
            check_highest(self.classes - 1, max(stay, self.highest_of_others), self.source)

    def copy_others(self, folder: Path) -> None:
        """Write the splits that are not sifted to a folder, under their names.

        Raises:
            DataError: a file cannot be read.
            OutputError: a file cannot be written.
        """
        reader = ParquetFiles(self.folder, self.source)
        reader.copy_others(choose_split("any", reader.splits, self.source), folder)

    def digest(self) -> str:
        """Return the SHA-256 of the names and sizes of the shards; what is in them would have to be read."""
        listed = [(shard.name, shard.rows, shard.path.stat().st_size) for shard in self.shards]
        return hashlib.sha256(json.dumps([listed, self.class_names]).encode()).hexdigest()

    def _encoded(
        self, shard: Shard, wanted: Int[np.ndarray, "m"] | None, labels: list[int]
    ) -> Iterator[tuple[str, bytes]]:
        """Yield what to call each wanted image of a shard and its bytes, and append its label to `labels`."""
        source = f"{self.source}/{shard.name}"
        with reported(source):
            for start, batch in batches_of(shard.path, [self.image, self.label], wanted):
                numbers = label_numbers(batch, self.label, source)
                cells = batch.column(self.image)
                chosen: Sequence[int] | Int[np.ndarray, "k"] = range(len(batch))
                if wanted is not None:
                    chosen = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
                for row in chosen:
                    labels.append(int(numbers[row]))
                    yield encoded_image(cells[int(row)], start + int(row), source)


@dataclass(frozen=True)
class _Layout:
    """Where a file has images and labels, and the names of its classes if it says them."""

    image: str
    label: str
    class_names: tuple[str, ...] | None


def declared_rows(source: str | Path) -> int:
    """Return how many rows the files of a folder of parquet files declare that `Shards.of` would read.

    Returns:
        0 if the source is no such folder.

    Raises:
        DataError: a file cannot be read.
    """
    from pyarrow import parquet

    rows, shown = 0, clean_text(str(source))
    with reported(shown):
        folder = Path(source).expanduser()
        if not folder.is_dir() or not parquet_files(folder):
            return 0
        reader = ParquetFiles(folder, shown)
    for name, path in reader.files(choose_split("any", reader.splits, shown)).items():
        with reported(f"{shown}/{name}"):
            rows += parquet.read_metadata(path).num_rows
    return rows


def too_many(source: str | Path) -> bool:
    """Return whether a source is a folder of parquet files whose images are more than `HELD`.

    Raises:
        DataError: a file cannot be read.
    """
    rows = declared_rows(source)
    return rows > FEW and rows > Shards.of(source).fitting()


def _declared(path: Path, source: str) -> tuple[int, _Layout]:
    """Return the rows and the layout of a file, from what it declares."""
    from datasets import ClassLabel, Features
    from pyarrow import parquet

    with reported(source):
        metadata = parquet.read_metadata(path)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        check_size(max((group.total_byte_size for group in groups), default=0), source)
        check_row_counts(metadata)
        check_declared_classes(json.loads((metadata.metadata or {}).get(b"huggingface", b"null")), source)
        features = Features.from_arrow_schema(metadata.schema.to_arrow_schema())
        image, label = image_column(features, source), label_column(features, source)
    names = names_of(features[label], source) if isinstance(features[label], ClassLabel) else None
    return metadata.num_rows, _Layout(image, label, names)


def _highest(path: Path, label: str, source: str) -> int:
    """Return the highest label of a file."""
    with reported(source):
        batches: Iterator[Any] = (batch for _, batch in batches_of(path, [label]))
        return max((int(label_numbers(batch, label, source).max(initial=0)) for batch in batches), default=0)
