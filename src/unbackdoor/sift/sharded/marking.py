"""Saying of the rows of one shard what they are held to be, once the thresholds of all rows are known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt64

from unbackdoor.data.parquet import copy_rows
from unbackdoor.data.shards import Shard, Shards
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.sift.sharded.ranks import Placed, chance_of, keys_of
from unbackdoor.sift.sharded.tables import MARKED, column, note_of, reading, writing
from unbackdoor.text import in_utf8

TOP = 6
"""Most suspicious rows of each class that are named."""

BINS = 60
"""Into which scores are counted."""

WORDS = np.array(["undecided", "clean", "poisoned"])


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where rows are divided, by the scores of all shards, and lots among equal ones (see `keys_of`).

    Attributes:
        clean: the row below which rows are held clean; None: all that are not held poisoned.
        poisoned: the row above which rows are held poisoned.
        lowest: score.
        highest: score.
    """

    clean: Placed | None
    poisoned: Placed
    lowest: float
    highest: float

    @property
    def clean_below(self) -> float | None:
        """The score below which all rows are held clean; of those that have it, as many as the share allows."""
        return None if self.clean is None else self.clean.score

    @property
    def poisoned_above(self) -> float:
        """The score above which all rows are held poisoned; of those that have it, as many as the share allows."""
        return self.poisoned.score

    def held(self, keys: UInt64[np.ndarray, "m"]) -> tuple[Bool[np.ndarray, "m"], Bool[np.ndarray, "m"]]:
        """Return which rows are held clean, and which poisoned."""
        poisoned = keys > np.uint64(self.poisoned.key)
        below = ~poisoned if self.clean is None else keys < np.uint64(self.clean.key)
        return below & ~poisoned, poisoned

    def bins(self, scores: Float32[np.ndarray, "m"]) -> Int[np.ndarray, "bins"]:
        """Return how many scores lie in each of `BINS` equal steps from the lowest to the highest."""
        step = (self.highest - self.lowest) / BINS or 1.0
        numbers = ((scores.astype(np.float64) - self.lowest) / step).astype(np.int64)
        return np.bincount(numbers.clip(0, BINS - 1), minlength=BINS)


Place = tuple[str, int]
"""A row of the data: the name of its file, and its number there."""


class Top(NamedTuple):
    """One of the most suspicious rows of its class.

    Attributes:
        label: its class.
        score: higher is more suspicious.
        shard: the name of its file.
        row: its number there.
        word: what it is held to be.
    """

    label: int
    score: float
    shard: str
    row: int
    word: str

    @property
    def place(self) -> Place:
        """Where it is."""
        return self.shard, self.row


@dataclass(kw_only=True)
class Marks:
    """What is held of rows, of one shard or of several: `add` puts them together.

    Attributes:
        classes: of the data.
        members: rows of each class.
        poisoned: rows of each class that are held poisoned.
        clean: rows that are held clean.
        bins: rows that are not held poisoned, and that are, in each step of the scores.
        top: the `TOP` rows with the highest scores of each class, the highest first.
    """

    classes: int
    members: list[int] = field(default_factory=list)
    poisoned: list[int] = field(default_factory=list)
    clean: int = 0
    bins: list[list[int]] = field(default_factory=lambda: [[0] * BINS, [0] * BINS])
    top: list[Top] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.members = self.members or [0] * self.classes
        self.poisoned = self.poisoned or [0] * self.classes
        self.top = [Top(*one) for one in self.top]

    def add(self, other: Marks) -> None:
        """Take in what is held of other rows."""
        self.members = _sum(self.members, other.members)
        self.poisoned = _sum(self.poisoned, other.poisoned)
        self.clean += other.clean
        self.bins = [_sum(mine, its) for mine, its in zip(self.bins, other.bins)]
        self.top = _highest([*self.top, *other.top])


@dataclass(frozen=True, kw_only=True)
class Marking:
    """What decides what rows are held to be.

    Attributes:
        shards: the data.
        method: how they were scored.
        thresholds: where rows are divided.
        folder: of the tables.
        seed: of the lots that decide between rows of equal scores.
        clean_out: folder for the rows not held poisoned, the same on all machines; or None.
    """

    shards: Shards
    method: RowSifter
    thresholds: Thresholds
    folder: Path
    seed: int
    clean_out: Path | None = None


class Marker:
    """Marks the rows of one shard after the other.

    Args:
        marking: what decides it.
    """

    def __init__(self, marking: Marking) -> None:
        self.marking = marking

    def __call__(self, shard: Shard) -> dict[str, Any]:
        """Write the table of a shard once more, with what its rows are held to be, and return its `Marks`.

        Raises:
            DataError: the shard cannot be read any more.
            OutputError: the table, or the cleaned shard, cannot be written.
        """
        job, marks = self.marking, Marks(classes=self.marking.shards.classes)
        path = job.folder / shard.name
        note, chance = note_of(path), chance_of(shard.name, job.seed)
        kept: list[torch.Tensor] = []
        with writing(path, MARKED) as table:
            for batch in reading(path, "row", "label", "score"):
                rows, labels, scores = (column(batch, name) for name in ("row", "label", "score"))
                clean, poisoned = job.thresholds.held(keys_of(scores, chance))
                words = WORDS[clean + 2 * poisoned].tolist()
                table.add(
                    shard=[shard.name] * len(rows),
                    row=rows,
                    label=labels,
                    class_name=[in_utf8(job.shards.class_names[label]) for label in labels],
                    score=scores,
                    suspicion=words,
                    reason=[job.method.reason(score) for score in scores.tolist()],
                )
                marks.add(_marks(job, shard, labels, scores, rows, clean, poisoned))
                if job.clean_out is not None:
                    kept.append(torch.from_numpy(~poisoned))
            if note is not None:
                table.note(note)
        if job.clean_out is not None:
            mask = torch.cat([*kept, torch.zeros(0, dtype=torch.bool)])
            copy_rows(shard.path, job.clean_out / shard.name, mask, f"{job.shards.source}/{shard.name}")
        return vars(marks)


def _marks(
    job: Marking,
    shard: Shard,
    labels: Int[np.ndarray, "m"],
    scores: Float32[np.ndarray, "m"],
    rows: Int[np.ndarray, "m"],
    clean: Bool[np.ndarray, "m"],
    poisoned: Bool[np.ndarray, "m"],
) -> Marks:
    classes = job.shards.classes
    order = np.lexsort((rows, -scores, labels))
    ranked = labels[order]
    first = order[np.arange(len(order)) - np.searchsorted(ranked, ranked) < TOP]
    words = WORDS[clean + 2 * poisoned]
    return Marks(
        classes=classes,
        members=np.bincount(labels, minlength=classes).tolist(),
        poisoned=np.bincount(labels[poisoned], minlength=classes).tolist(),
        clean=int(clean.sum()),
        bins=[job.thresholds.bins(scores[part]).tolist() for part in (~poisoned, poisoned)],
        top=[Top(int(labels[i]), float(scores[i]), shard.name, int(rows[i]), str(words[i])) for i in first],
    )


def _highest(rows: Iterable[Top]) -> list[Top]:
    """Return the `TOP` rows of each class, the highest first; of equal ones the first by file and row."""
    found: dict[int, list[Top]] = {}
    for one in sorted(rows, key=lambda row: (row.label, -row.score, row.place)):
        members = found.setdefault(one.label, [])
        if len(members) < TOP:
            members.append(one)
    return [one for members in found.values() for one in members]


def _sum(one: list[int], other: list[int]) -> list[int]:
    return [left + right for left, right in zip(one, other, strict=True)]
