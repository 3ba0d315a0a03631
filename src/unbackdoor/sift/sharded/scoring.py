"""Scoring one shard, a few rows at a time: the work of one process, wherever that runs."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

import unbackdoor
from unbackdoor.cluster import RETRIES
from unbackdoor.data import ImageSet
from unbackdoor.data.limits import reason_of
from unbackdoor.data.shards import Shard, Shards
from unbackdoor.errors import DataError, OutputError
from unbackdoor.models import Network
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.sift.sharded.tables import SCORED, Note, note_of, writing
from unbackdoor.text import in_utf8
from unbackdoor.training import Runtime, check_fits
from unbackdoor.training.resume import hash_state

BEGUN = ".begun"
"""How the name ends of the file that says that a table is being made."""


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What decides the scores of all shards.

    Attributes:
        shards: the data.
        method: how rows are scored.
        network: by which; adapted already.
        runtime: device, precision, threads and seed.
        place: kind of device that the processes have, "cpu" or "cuda"; the machine that asks may have none of these.
        folder: of the tables, the same on all machines.
    """

    shards: Shards
    method: RowSifter
    network: Network
    runtime: Runtime
    place: str
    folder: Path

    def fingerprint(self) -> str:
        """Return a hash of all that decides the scores of a shard but the shard itself."""
        told = {
            "unbackdoor": unbackdoor.__version__,
            "method": repr(self.method),
            "revision": self.method.revision,
            "columns": [self.shards.image, self.shards.label],
            "network": self.network.description.to_json(),
            "device": self.place,
            "precision": self.runtime.precision,
            "seed": self.runtime.seed,
        }
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        hash_state(digest, self.network)
        return digest.hexdigest()


class Scorer:
    """Scores one shard after the other.

    Args:
        scoring: what decides the scores.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.scoring, self.fingerprint = scoring, scoring.fingerprint()
        self._seen: Observed | None = None

    def __call__(self, shard: Shard) -> dict[str, bool]:
        """Write the table of a shard, unless there is one that was made of the same; return whether it was `kept`.

        Raises:
            DataError: naming the shard, and the row if it is one that cannot be read.
            OutputError: the table cannot be written.
        """
        shards, path = self.scoring.shards, self.scoring.folder / shard.name
        digest = self._sha256(shard)
        found = note_of(path)
        if found is not None and (found.fingerprint, found.sha256) == (self.fingerprint, digest):
            return {"kept": True}
        with _counted(path, f"{shards.source}/{shard.name}"):
            self._score(shard, path, digest)
        return {"kept": False}

    def _score(self, shard: Shard, path: Path, digest: str) -> None:
        shards = self.scoring.shards
        counts: dict[str, int] = {}
        row = 0
        with writing(path, SCORED) as table:
            for piece in shards.pieces(shard, self.scoring.network.description.image_shape[0]):
                check_fits(self.scoring.network, piece)
                seen = self._over(piece)
                scores, counted = self.scoring.method.measure(seen, seen.model)
                if not bool(torch.isfinite(scores).all()):
                    raise DataError(
                        f"rows {row} to {row + len(piece) - 1} of {piece.name} get scores that are no numbers; give"
                        " another model"
                    )
                labels = piece.labels.numpy()
                table.add(
                    shard=[shard.name] * len(piece),
                    row=range(row, row + len(piece)),
                    label=labels,
                    class_name=[in_utf8(piece.class_names[label]) for label in labels],
                    score=scores.numpy(),
                )
                row += len(piece)
                counts = {name: counts.get(name, 0) + count for name, count in counted.items()}
            table.note(Note(fingerprint=self.fingerprint, sha256=digest, rows=row, counts=counts))

    def _over(self, piece: ImageSet) -> Observed:
        """Return what the network makes of these rows."""
        if self._seen is None:
            self._seen = Observed(self.scoring.network, piece, None, self.scoring.runtime)
        return self._seen.over(piece)

    def _sha256(self, shard: Shard) -> str:
        try:
            with shard.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"cannot read {self.scoring.shards.source}/{shard.name} on the machine {platform.node()}:"
                f" {reason_of(error)}; every machine must find the data under the same path"
            ) from error


@contextmanager
def _counted(path: Path, source: str) -> Iterator[None]:
    """Note in a file that a table is begun, and remove the note in the end; it stays if the process is lost.

    Raises:
        DataError: the process was lost too often. Whoever begins it again would do so for ever.
        OutputError: the folder cannot be written.
    """
    begun = path.with_name(f".{path.name}{BEGUN}")
    try:
        begun.parent.mkdir(parents=True, exist_ok=True)
        with begun.open("ab") as note:
            times = note.tell()
            note.write(b".")
    except OSError as error:
        raise OutputError(
            f"cannot write {path} on the machine {platform.node()}: {reason_of(error)}; give an --out that all machines"
            " can write"
        ) from error
    try:
        if times > RETRIES:
            raise DataError(
                f"{source} was begun {times} times, and the process that scored it was lost each time; look for what is"
                " wrong with that file, or whether the machines have too little memory"
            )
        yield
    finally:
        begun.unlink(missing_ok=True)
