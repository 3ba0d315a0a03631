"""Sifting a folder of parquet files: score every file, find the thresholds of all rows, mark every file.

1. *A model.* Where none is given, one is trained as the method trains it, and where the method changes the model first,
   it does so: on a sample of rows that is drawn from all files alike, each row as likely as any other.
2. *Scores.* Every file is scored by itself, a few rows at a time, wherever Ray Data puts it, and its scores become a
   table that is there whole or not at all. A table that was made of the same file by the same model is kept, so an
   interrupted run loses the files that were being scored and nothing else.
3. *Thresholds.* Passes over the scores tell exactly where the shares lie (`ranks`); lots decide between equal scores.
4. *Marks.* Every table is written once more with what its rows are held to be, and every file without the rows held
   poisoned, where that is wanted.
"""

from __future__ import annotations

import copy
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor.data.limits import check_classes
from unbackdoor.data.shards import Shards
from unbackdoor.errors import DataError, OutputError
from unbackdoor.models import Network
from unbackdoor.sift.base import LEARNING, QUANTILES
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.row_sifter import TIES, RowSifter
from unbackdoor.sift.sharded.marking import Marker, Marking, Marks, Thresholds
from unbackdoor.sift.sharded.ranks import Placed, at_ranks, chance_of, keys_of
from unbackdoor.sift.sharded.scoring import BEGUN, Scorer, Scoring
from unbackdoor.sift.sharded.tables import Note, column, note_of, reading
from unbackdoor.sift.sharded.workers import Workers
from unbackdoor.training import Runtime, check_fits

SAMPLE = 50_000
"""Rows from which is learned."""


@dataclass(frozen=True, kw_only=True)
class ShardedSuspicion:
    """What a sifter says of the rows of all files.

    Attributes:
        marks: what rows are held to be, in numbers, and the most suspicious of each class.
        thresholds: where they are divided.
        quantiles: of the scores, by level; that of the row at this rank, nothing in between.
        summary: what was found, one sentence.
        evidence: further numbers, JSON values.
        digest: SHA-256 of the lines "<sha256>  <name>" of all files, sorted by name.
        sample: rows from which was learned; 0: none.
        kept: files of which there was a table before.
    """

    marks: Marks
    thresholds: Thresholds
    quantiles: dict[str, float]
    summary: str
    evidence: dict[str, Any]
    digest: str
    sample: int
    kept: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return sum(self.marks.members)

    @property
    def poisoned(self) -> int:
        """How many rows are held poisoned."""
        return sum(self.marks.poisoned)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as JSON values, without its rows."""
        held = {"clean": self.marks.clean, "poisoned": self.poisoned}
        return {
            "rows": self.rows,
            "held": {**held, "undecided": self.rows - sum(held.values())},
            "score_quantiles": self.quantiles,
            "clean_below": self.thresholds.clean_below,
            "poisoned_above": self.thresholds.poisoned_above,
            "rows_learned_from": self.sample,
            "summary": self.summary,
            **self.evidence,
        }


def sift_shards(
    shards: Shards,
    method: RowSifter,
    runtime: Runtime,
    workers: Workers,
    folder: Path,
    *,
    model: Network | None = None,
    sample: int = SAMPLE,
    clean_out: Path | None = None,
    resume: Path | None = None,
) -> ShardedSuspicion:
    """Say of each row of a folder of parquet files how suspicious it is.

    Args:
        shards: the files.
        method: how.
        runtime: device, seed, budget of what is learned; the workers score on their own devices.
        workers: entered already.
        folder: for the tables, one a file under its name; every machine must find it, and the data, under the same
            path. Nobody else may write there meanwhile.
        model: one that was trained on the data, not changed; if None, the method trains one itself.
        sample: rows, at most, from which is learned.
        clean_out: folder for the files without the rows held poisoned, and the other splits, under the same path on
            every machine; complete once this returns, and to be seen by nobody before (see `data.cleaned.becoming`).
        resume: see `Sifter.score`.

    Raises:
        DataError: files that cannot be read, the first of them named; the tables of the others stay.
        InputError: they do not fit the model or the method.
        OutputError: a folder cannot be written, or the cluster is gone.
    """
    folder = folder.absolute()
    _remove_leftovers(folder)
    network, evidence, learned = prepare(shards, method, runtime, model, sample, resume)
    scoring = Scoring(
        shards=shards,
        method=method,
        network=network,
        runtime=workers.runtime(runtime),
        place=workers.place,
        folder=folder,
    )
    answers = _each(workers, partial(Scorer, scoring), shards, runtime, "files scored", gpus=True)
    kept = sum(answer["kept"] for answer in answers)
    notes = _notes(scoring)
    ties = runtime.generator("shards", "ties").initial_seed()
    thresholds, quantiles, tied = divide(method.shares(), folder, [shard.name for shard in shards.shards], ties)
    marking = Marking(
        shards=shards, method=method, thresholds=thresholds, folder=folder, seed=ties, clean_out=clean_out
    )
    marks = _marked(marking, workers, runtime)
    _remove_others(folder, shards)
    return ShardedSuspicion(
        marks=marks,
        thresholds=thresholds,
        quantiles=quantiles,
        summary=method.told(sum(marks.poisoned)),
        evidence={**_counts(notes), **tied, **evidence},
        digest=_digest(notes),
        sample=learned,
        kept=kept,
    )


def _remove_leftovers(folder: Path) -> None:
    """Remove what a run that was killed left."""
    for ending in (".partial", BEGUN):
        for leftover in folder.rglob(f".*{ending}"):
            leftover.unlink(missing_ok=True)


def _marked(marking: Marking, workers: Workers, runtime: Runtime) -> Marks:
    """Write all tables once more, and the cleaned files if they are wanted; return what all rows are held to be."""
    marks = Marks(classes=marking.shards.classes)
    for answer in _each(workers, partial(Marker, marking), marking.shards, runtime, "files marked", gpus=False):
        marks.add(Marks(**answer))
    if marking.clean_out is not None:
        marking.shards.check_kept([members - held for members, held in zip(marks.members, marks.poisoned)])
        marking.shards.copy_others(marking.clean_out)
    return marks


def _counts(notes: Mapping[str, Note]) -> Counter[str]:
    """Return the sums of what the tables count."""
    counts: Counter[str] = Counter()
    for note in notes.values():
        counts.update(note.counts)
    return counts


def _digest(notes: Mapping[str, Note]) -> str:
    """Return the SHA-256 of all files (see `ShardedSuspicion.digest`)."""
    lines = "".join(f"{notes[name].sha256}  {name}\n" for name in sorted(notes))
    return hashlib.sha256(lines.encode()).hexdigest()


def prepare(
    shards: Shards, method: RowSifter, runtime: Runtime, model: Network | None, size: int, resume: Path | None
) -> tuple[Network, dict[str, Any], int]:
    """Return the model by which rows are scored, on the CPU, evidence, and the number of rows from which was learned.

    It is what `Sifter.score` would have of the sample alone.
    """
    if model is not None and not method.adapts:
        check_fits(model, shards.first(model.description.image_shape[0]))
        return copy.deepcopy(model).cpu(), {}, 0
    seed = runtime.generator("shards", "sample").initial_seed()
    rows = shards.sample(min(size, shards.fitting()), seed).in_canonical_order()
    check_classes(rows.labels, f"the sample of {shards.source}")
    work = runtime
    if model is None:
        model = method.learn(rows, runtime.part(LEARNING), resume)
        work = runtime.part(1 - LEARNING)
    check_fits(model, rows)
    network, evidence = method.adapted(Observed(model, rows, None, work, resume))
    return copy.deepcopy(network).cpu(), evidence, len(rows)


def divide(
    shares: tuple[float | None, float], folder: Path, names: Sequence[str], seed: int
) -> tuple[Thresholds, dict[str, float], dict[str, int]]:
    """Return where the shares of all rows lie, quantiles of the scores, and how many rows share the clean threshold.

    As many rows are held clean and poisoned as the shares allow, whatever scores they share (but for equal lots there,
    one in 2^32 of the ties: then fewer).

    Args:
        shares: see `RowSifter.shares`.
        folder: of the tables with the scores.
        names: of the tables.
        seed: of the lots that decide between rows of equal scores.
    """

    def keys() -> Iterable[np.ndarray]:
        for name in names:
            chance = chance_of(name, seed)
            for batch in reading(folder / name, "score"):
                yield keys_of(column(batch, "score"), chance)

    rows = sum(map(len, keys()))
    lowest, highest = shares
    levels = [round(level * (rows - 1)) for level in QUANTILES]
    clean, poisoned = int((lowest or 0.0) * rows), rows - 1 - int(highest * rows)
    last: Placed  # held clean, as far as there is one
    *found, last, below, above = at_ranks([*levels, max(0, clean - 1), clean, poisoned], keys)
    thresholds = Thresholds(
        clean=None if lowest is None else below,
        poisoned=above,
        lowest=found[0].score,
        highest=found[-1].score,
    )
    quantiles = {f"{level:g}": one.score for level, one in zip(QUANTILES, found)}
    return thresholds, quantiles, {} if lowest is None else {TIES: last.ties if clean else 0}


def _each(
    workers: Workers, make: Callable[[], Any], shards: Shards, runtime: Runtime, description: str, *, gpus: bool
) -> Iterator[dict[str, Any]]:
    """Do all shards and yield what came of each.

    Raises:
        DataError: some could not be done; those that could are.
    """
    failed = []
    with runtime.progress.bar(description, len(shards.shards)) as advance:
        for shard, answer in workers.each(make, shards.shards, gpus=gpus):
            if "error" in answer:
                failed.append((shard.name, answer["error"]))
            else:
                yield answer
            advance()
    if failed:
        others = "" if len(failed) == 1 else f" (and {len(failed) - 1} other files cannot be done)"
        raise DataError(
            f"{min(failed)[1]}{others}; the other {len(shards.shards) - len(failed)} files are done, and the same"
            " command goes on"
        )


def _notes(scoring: Scoring) -> dict[str, Note]:
    """Return what the tables say of themselves, by the files' names.

    Raises:
        OutputError: a table is not there.
    """
    notes, fingerprint = {}, scoring.fingerprint()
    for shard in scoring.shards.shards:
        note = note_of(scoring.folder / shard.name)
        if note is None or note.fingerprint != fingerprint:
            raise OutputError(
                f"{shard.name} was scored, and its table is not in {scoring.folder}; give a folder by --out that all"
                " machines share"
            )
        notes[shard.name] = note
    return notes


def _remove_others(folder: Path, shards: Shards) -> None:
    """Remove tables of files that are not part of the data, which an earlier answer left."""
    own = {folder / shard.name for shard in shards.shards}
    for path in folder.rglob("*.parquet"):
        if path not in own and note_of(path) is not None:
            path.unlink()
