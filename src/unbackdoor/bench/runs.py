"""The runs of an MLflow store as they are read: from a database in a few queries, from a server page by page.

MLflow's client builds an object of every tag, parameter and metric: of 10,000 runs 400,000, in some ten seconds.
A database is asked for what is needed, with MLflow's own definitions of its tables; a server can only be asked for all.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

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


def is_database(uri: str) -> bool:
    """Return whether an address is that of a database, and not of a server or a folder."""
    from mlflow.store.db.db_types import DATABASE_ENGINES

    return uri.split(":", 1)[0].split("+", maxsplit=1)[0] in DATABASE_ENGINES


def runs_of_database(uri: str, experiment: str) -> Iterator[Run]:
    """Yield the finished and failed runs of an experiment, the newest first.

    Args:
        uri: of the database, whose tables are there.
        experiment: identifier.
    """
    from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlRun, SqlTag
    from sqlalchemy import create_engine, select

    chosen = (
        SqlRun.experiment_id == int(experiment),
        SqlRun.lifecycle_stage == "active",
        SqlRun.status.in_([FINISHED, FAILED]),
    )
    engine = create_engine(uri)
    try:
        # Runs first: those that are over have all of their tags and metrics already.
        with engine.connect() as database:
            runs = database.execute(
                select(SqlRun.run_uuid, SqlRun.status, SqlRun.start_time, SqlRun.end_time)
                .where(*chosen)
                .order_by(SqlRun.start_time.desc(), SqlRun.run_uuid)
            ).all()
            tags: dict[str, dict[str, str]] = defaultdict(dict)
            named = select(SqlTag.run_uuid, SqlTag.key, SqlTag.value).join(SqlRun, SqlRun.run_uuid == SqlTag.run_uuid)
            for run, name, value in database.execute(named.where(*chosen, SqlTag.key.in_(TAGS))):
                tags[run][name] = value
            metrics: dict[str, dict[str, float]] = defaultdict(dict)
            figures = select(
                SqlLatestMetric.run_uuid, SqlLatestMetric.key, SqlLatestMetric.value, SqlLatestMetric.is_nan
            ).join(SqlRun, SqlRun.run_uuid == SqlLatestMetric.run_uuid)
            for run, name, figure, is_nan in database.execute(figures.where(*chosen)):
                metrics[run][name] = math.nan if is_nan else figure
    finally:
        engine.dispose()
    for run, status, started, ended in runs:
        yield Run(name=run, status=status, started=started, ended=ended, tags=tags[run], metrics=metrics[run])
