"""The store of finished cells: MLflow, in a file of its own by default, on any tracking server if one is named.

A cell is written when it is done, and its run is called finished last of all: what an interruption cut off is seen as
not done. Files in a store are as untrusted as any others; they are read by the readers that refuse what could act.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from unbackdoor.bench import NOT_INSTALLED
from unbackdoor.bench.cell import Cell, Label
from unbackdoor.bench.runs import (
    COMMIT,
    FAILED,
    FINISHED,
    PREFIX,
    RUNNING,
    Run,
    experiment_of_database,
    is_database,
    runs_of_database,
    runs_of_server,
)
from unbackdoor.bench.worker import CellOutcome
from unbackdoor.data.cache import default_folder
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError, OutputError
from unbackdoor.files import read_bytes, replacing, sha256, write_bytes, write_json
from unbackdoor.models.limits import MAX_FILE_BYTES
from unbackdoor.text import clean_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

logger = logging.getLogger(__name__)

EXPERIMENT = "unbackdoor"

RECIPE = "cell.json"
"""The file that says what a cell was, to the last option."""

LABELS: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("poison_rate", "clean_size", "budget", "seed"), (int, float)),
    **dict.fromkeys(("data", "network", "attack", "training", "precision", "method"), (str,)),
}
"""Types of labels that are put in order or in columns; a store can be written by others too."""

MOST_TEXT = 4000
"""Characters of a tag: MLflow takes 5,000 and more."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """A cell as the store knows it.

    Attributes:
        key: of the cell.
        run: MLflow's identifier of the run.
        domain: name of the domain.
        kind: see `Cell`.
        labels: see `Cell`.
        metrics: see `CellOutcome`.
        error: why it failed; empty if it is done.
        machine: what it ran on.
        commit: of the checkout that put it there, see `commit`; empty if it was none.
        needs: the key of the cell from which it started; empty if there is none.
        duration: seconds from its start until it was in the store.
    """

    key: str
    run: str
    domain: str
    kind: str
    labels: Mapping[str, Label]
    metrics: Mapping[str, float]
    error: str
    machine: Mapping[str, str]
    needs: str
    duration: float
    commit: str = ""


class Store:
    """Finished and failed cells.

    Args:
        uri: of an MLflow tracking server, or of a database; None: `$MLFLOW_TRACKING_URI`, or the SQLite file
            `mlflow.db` in `folder`.
        folder: for that file, and for the files of cells where the store is a database and no server.

    Attributes:
        uri: as above.
        shown: the same without a password.
        locks: folder, common to all benches of a user on this machine that have this store.

    Raises:
        InputError: MLflow is not installed.
        OutputError: the store cannot be opened.
    """

    def __init__(self, uri: str | None, folder: Path) -> None:
        self.folder = folder.resolve()
        own = self.folder / "mlflow.db"
        self.uri = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{own}"
        self.shown = without_password(self.uri)
        self.locks = default_folder() / "locks" / sha256(_same(self.shown).encode())[:16]
        if not find_spec("mlflow"):
            raise InputError(NOT_INSTALLED)
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.locks.mkdir(parents=True, exist_ok=True)
            # Two processes that make the tables at once would disturb each other.
            with FileLock(self.locks / "store.lock"):
                if self.uri == f"sqlite:///{own}" and not own.exists():
                    _make_tables(own)
                known = experiment_of_database(self.uri, EXPERIMENT) if is_database(self.uri) else None
                self.experiment = self._active(*known) if known else self._experiment()

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own way to the store, which takes seconds to import: a database is read without it."""
        _import_mlflow()
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=self.uri)

    def _experiment(self) -> str:
        """Return the experiment's identifier; make the experiment if there is none."""
        client = self.client
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            # A server knows where it keeps files; a database does not.
            place = None if self.uri.startswith("http") else (self.folder / "files").as_uri()
            try:
                return str(client.create_experiment(EXPERIMENT, artifact_location=place))
            except MlflowException:
                # Another bench may have made it since, on another machine.
                found = client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
        return self._active(found.experiment_id, found.lifecycle_stage)

    def _active(self, experiment: str, stage: str) -> str:
        if stage != "active":
            raise OutputError(f"the experiment {EXPERIMENT} was deleted in {self.shown}; restore it in MLflow")
        return str(experiment)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever a server, a database, its driver or a disk raises into one sentence."""
        try:
            yield
        except _failures() as error:
            raise OutputError(f"the store {self.shown} does not work: {reason_of(error)}; see --store") from error

    def records(self) -> list[Record]:
        """Return all cells, those that failed too; of each key the newest that is done, or else the newest."""
        newest: dict[str, Record] = {}
        for record in map(_record, self._runs()):
            if record is None:
                continue
            if record.key not in newest or (newest[record.key].error and not record.error):
                newest[record.key] = record
        return list(newest.values())

    def find(self, key: str) -> Record | None:
        """Return the cell if it is done; for whoever holds its lock, so that nobody else is writing it.

        What was cut off while it was written is called killed, or MLflow would show it as running for ever.
        """
        found = None
        with self._explained():
            for run in runs_of_server(self.client, self.experiment, f"tags.`{PREFIX}key` = '{key}'"):
                if run.status == RUNNING:
                    self.client.set_terminated(run.name, "KILLED")
                elif found is None and run.status == FINISHED and (record := _record(run)) and not record.error:
                    found = record
        return found

    def _runs(self) -> list[Run]:
        """Return finished and failed runs, the newest first."""
        with self._explained():
            if is_database(self.uri):
                found = runs_of_database(self.uri, self.experiment)
            else:
                found = runs_of_server(self.client, self.experiment, f"attributes.status != '{RUNNING}'")
            # Others may be killed or deleted by hand, and a store can be used for other things too.
            return [run for run in found if run.status in (FINISHED, FAILED) and f"{PREFIX}key" in run.tags]

    def add(self, cell: Cell, outcome: CellOutcome) -> Record:
        """Keep what came of a cell.

        Raises:
            OutputError: the store cannot be written.
        """
        _import_mlflow()
        from mlflow.entities import Metric, Param

        started, ended = int(outcome.started * 1000), int((outcome.started + outcome.seconds) * 1000)
        metrics = [
            Metric(name, float(value), ended, 0) for name, value in outcome.metrics.items() if math.isfinite(value)
        ]
        parameters = [Param(name, str(value)) for name, value in cell.labels.items() if value is not None]
        with self._explained():
            run = self.client.create_run(
                self.experiment, start_time=started, tags=self._tags(cell, outcome), run_name=cell.title[:250]
            )
            self.client.log_batch(run.info.run_id, metrics=metrics, params=parameters)
            self._write_files(run, cell, outcome)
            state = FAILED if outcome.error else FINISHED
            self.client.set_terminated(run.info.run_id, state, end_time=ended)
        return Record(
            key=cell.key,
            run=run.info.run_id,
            domain=type(cell.domain).__name__,
            kind=cell.kind,
            labels=cell.labels,
            metrics=outcome.metrics,
            error=clean_text(outcome.error, MOST_TEXT),
            machine=outcome.machine,
            needs=cell.needed,
            duration=outcome.seconds,
            commit=commit(),
        )

    def _tags(self, cell: Cell, outcome: CellOutcome) -> dict[str, str]:
        tags = {
            "key": cell.key,
            "domain": type(cell.domain).__name__,
            "kind": cell.kind,
            "labels": json.dumps(dict(cell.labels)),
            "machine": json.dumps(dict(outcome.machine)),
            "needs": cell.needed,
            "error": clean_text(outcome.error, MOST_TEXT),
        }
        named = {f"{PREFIX}{name}": text for name, text in tags.items() if text}
        return {**named, COMMIT: commit()} if commit() else named

    def _write_files(self, run: Entity, cell: Cell, outcome: CellOutcome) -> None:
        with tempfile.TemporaryDirectory(prefix="unbackdoor-") as name:
            folder = Path(name)
            recipe = {"kind": cell.kind, "labels": dict(cell.labels), "recipe": dict(cell.recipe)}
            write_json(folder / RECIPE, {**recipe, "needs": cell.needed or None})
            for file, content in outcome.files.items():
                write_bytes(folder / file, content)
            if outcome.trace:
                write_bytes(folder / "trace.txt", outcome.trace.encode(errors="replace"))
            self.client.log_artifacts(run.info.run_id, str(folder))

    def files(self, record: Record) -> dict[str, bytes]:
        """Return the files that were kept of a cell, by name.

        Raises:
            InputError: they are gone, or not what was written here.
            OutputError: the store does not work.
        """
        with tempfile.TemporaryDirectory(prefix="unbackdoor-") as name:
            with self._explained():
                try:
                    folder = Path(self.client.download_artifacts(record.run, "", name))
                    found = {path.name: read_bytes(path, MAX_FILE_BYTES) for path in folder.iterdir() if path.is_file()}
                except (FileNotFoundError, NotADirectoryError, ValueError) as error:
                    raise self._lost(record, reason_of(error)) from error
            # MLflow calls a folder that is gone an empty one.
            if RECIPE not in found:
                raise self._lost(record, "they are gone")
        return found

    def _lost(self, record: Record, reason: str) -> InputError:
        return InputError(
            f"the files of the run {record.run} cannot be read from {self.shown} ({reason}); delete that run, and the"
            " cell is done again"
        )


def without_password(uri: str) -> str:
    """Return an address without the user and the password that may stand in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri)


def _same(uri: str) -> str:
    """Return the one address for all that name the same file."""
    place = uri.removeprefix("sqlite:///")
    return uri if place == uri else f"sqlite:///{Path(place).resolve()}"


def _make_tables(file: Path) -> None:
    """Make an empty SQLite store, complete or not at all: an interrupted one could never be opened again."""
    _import_mlflow()
    from mlflow import MlflowClient

    with replacing(file) as partial:
        partial.unlink()
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()


def _record(run: Run) -> Record | None:
    """Return what a run says; None, with a warning, if it is not as it was written here."""

    def text(name: str, default: str = "") -> str:
        return str(run.tags.get(f"{PREFIX}{name}", default))

    try:
        if run.ended is None:
            raise ValueError("it is over and has no end")
        labels = dict(json.loads(text("labels", "{}")))
        allowed = ((value, LABELS.get(name, (str, int, float))) for name, value in labels.items())
        if not all(value is None or type(value) in types for value, types in allowed):
            raise ValueError("a label is neither text nor a number where it should be")
        machine = dict(json.loads(text("machine", "{}")))
        if not all(isinstance(value, str) for value in machine.values()):
            raise ValueError("what it says of its machine is no text")
        return Record(
            key=text("key"),
            run=run.name,
            domain=text("domain"),
            kind=text("kind"),
            labels=labels,
            metrics=dict(run.metrics),
            error=text("error", "" if run.status == FINISHED else "unknown"),
            machine=machine,
            needs=text("needs"),
            duration=(run.ended - run.started) / 1000,
            commit=run.tags.get(COMMIT, ""),
        )
    except (ValueError, TypeError, RecursionError) as error:
        logger.warning("the run %s is left out: unbackdoor did not write it so (%s)", run.name, reason_of(error))
        return None


def _failures() -> tuple[type[Exception], ...]:
    """Return what a server, a database, its driver (an ImportError) or a disk raises."""
    from sqlalchemy.exc import SQLAlchemyError

    if "mlflow" not in sys.modules:
        return SQLAlchemyError, OSError, ImportError
    from mlflow.exceptions import MlflowException

    return SQLAlchemyError, OSError, ImportError, MlflowException


def _import_mlflow() -> None:
    """Import MLflow for the first time, so that it tells nobody and says nothing."""
    # Neither may tell its makers what is measured here.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # And what it prints of its own would stand among our answers.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    import mlflow  # noqa: F401

    # Only now: MLflow sets its own level when it is imported.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


@cache
def commit() -> str:
    """Return the git commit of the checkout that this package runs from, with "-dirty" if files were changed.

    Empty if it runs from none: it may be installed inside the checkout of something else.
    """
    here = Path(__file__)

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(here.parent), *words], check=True, capture_output=True, text=True, timeout=10
        )
        return answer.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
