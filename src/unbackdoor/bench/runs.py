"""The runs of an MLflow store as they are read: from a database in a few queries, from a server page by page.

MLflow's client builds an object of every tag, parameter and metric: of 10,000 runs 400,000, in some ten seconds, and
takes seconds more to import. A database is asked for what is needed without it; a server can only be asked for all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity
    from sqlalchemy import Engine

PREFIX = "unbackdoor."
"""Of the tags in which a run keeps what is not a number."""

COMMIT = "mlflow.source.git.commit"
"""The tag that MLflow has for it."""

_NAMES = ("key", "domain", "kind", "labels", "machine", "needs", "error")
TAGS = frozenset({COMMIT, *(f"{PREFIX}{name}" for name in _NAMES)})
"""Those that are read."""

PAGE_SIZE = 5000
RUNNING, FINISHED, FAILED = "RUNNING", "FINISHED", "FAILED"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run says of a cell.

    Attributes:
        name: MLflow's identifier.
        status: `FINISHED`, or `FAILED`; `RUNNING` is also what was cut off while it was written.
        started: milliseconds since 1970.
        ended: the same; None: it has not.
        tags: those of `TAGS` that it has.
        metrics: by name.
    """

    name: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def runs_of_server(client: MlflowClient, experiment: str, condition: str) -> Iterator[Run]:
    """Yield runs through MLflow's client, the newest first.

    Args:
        client: of any store.
        experiment: identifier.
        condition: in MLflow's language of filters.
    """
    token = None
    while True:
        page = client.search_runs([experiment], filter_string=condition, max_results=PAGE_SIZE, page_token=token)
        yield from map(_of_client, page)
        token = page.token
        if not token:
            return


def _of_client(run: Entity) -> Run:
    tags = {name: value for name, value in run.data.tags.items() if name in TAGS}
    told = run.info
    return Run(
        name=told.run_id,
        status=told.status,
        started=told.start_time,
        ended=told.end_time,
        tags=tags,
        metrics=dict(run.data.metrics),
    )


DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
"""Those that MLflow can keep runs in, as their addresses begin."""


def is_database(uri: str) -> bool:
    """Return whether an address is that of a database, and not of a server or a folder."""
    return uri.split(":", 1)[0].split("+", maxsplit=1)[0] in DATABASES


@contextmanager
def _database(uri: str) -> Iterator[Engine]:
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        yield engine
    finally:
        engine.dispose()


def experiment_of_database(uri: str, name: str) -> tuple[str, str] | None:
    """Return the identifier and the stage ("active" or "deleted") of an experiment; None if there is none, or no table.

    Args:
        uri: of the database.
        name: of the experiment.
    """
    from sqlalchemy import column, inspect, select, table

    experiments = table("experiments", column("experiment_id"), column("name"), column("lifecycle_stage"))
    with _database(uri) as engine:
        if not inspect(engine).has_table(experiments.name):
            return None
        wanted = select(experiments.c.experiment_id, experiments.c.lifecycle_stage).where(experiments.c.name == name)
        with engine.connect() as database:
            found = database.execute(wanted).first()
    return (str(found[0]), str(found[1])) if found else None


def runs_of_database(uri: str, experiment: str) -> Iterator[Run]:
    """Yield the finished and failed runs of an experiment, the newest first.

    Args:
        uri: of the database, whose tables are there.
        experiment: identifier.
    """
    from sqlalchemy import column, select, table

    # Of MLflow's tables, the columns that are read.
    names = ("run_uuid", "status", "start_time", "end_time", "experiment_id", "lifecycle_stage")
    run, tag, metric = (
        table(name, *map(column, columns)).c
        for name, columns in (
            ("runs", names),
            ("tags", ("run_uuid", "key", "value")),
            ("latest_metrics", ("run_uuid", "key", "value", "is_nan")),
        )
    )
    chosen = (
        run.experiment_id == int(experiment),
        run.lifecycle_stage == "active",
        run.status.in_([FINISHED, FAILED]),
    )
    tags: dict[str, dict[str, str]] = defaultdict(dict)
    metrics: dict[str, dict[str, float]] = defaultdict(dict)
    with _database(uri) as engine, engine.connect() as database:
        # Runs first: those that are over have all of their tags and metrics already.
        runs = database.execute(
            select(run.run_uuid, run.status, run.start_time, run.end_time)
            .where(*chosen)
            .order_by(run.start_time.desc(), run.run_uuid)
        ).all()
        named = select(tag.run_uuid, tag.key, tag.value).where(tag.run_uuid == run.run_uuid)
        for owner, name, value in database.execute(named.where(*chosen, tag.key.in_(TAGS))):
            tags[owner][name] = value
        figures = select(metric.run_uuid, metric.key, metric.value, metric.is_nan)
        for owner, name, figure, is_nan in database.execute(figures.where(metric.run_uuid == run.run_uuid, *chosen)):
            metrics[owner][name] = math.nan if is_nan else figure
    for name, status, started, ended in runs:
        yield Run(name=name, status=status, started=started, ended=ended, tags=tags[name], metrics=metrics[name])
