"""A store gives back what was put into it, from a file and from a server, and calls nothing done that is not."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bench.noop import cells, outcome
from unbackdoor.bench.engine import Engine
from unbackdoor.bench.run import Bench
from unbackdoor.bench.runs import DATABASES, is_database, runs_of_database, runs_of_server
from unbackdoor.bench.store import Record, Store, commit, without_password
from unbackdoor.errors import InputError, OutputError
from unbackdoor.training import Silent


def check_round_trip(store: Store) -> None:
    """Put cells into an empty store and look at them from every side."""
    victim, repair = cells(1)
    assert store.records() == []
    assert store.find(victim.key) is None
    put = store.add(
        victim, outcome(metrics={"acc": 0.875, "asr": 0.25}, files={"model.bin": b"\x00\xff", "b.txt": b"b"})
    )
    store.add(repair, outcome(error="it failed", trace="Traceback"))
    found = {record.key: record for record in store.records()}
    assert set(found) == {victim.key, repair.key}
    assert found[victim.key] == put
    assert found[victim.key].metrics["asr"] == 0.25
    assert found[victim.key].labels == dict(victim.labels)
    assert found[repair.key].error == "it failed"
    assert found[repair.key].needs == victim.key
    assert store.find(victim.key) == put
    assert store.find(repair.key) is None, "what failed is not done"
    files = store.files(put)
    assert files["model.bin"] == b"\x00\xff"
    assert json.loads(files["cell.json"])["recipe"] == dict(victim.recipe)
    assert store.files(found[repair.key])["trace.txt"] == b"Traceback"
    store.add(repair, outcome(metrics={"acc": 0.5}))
    assert {record.key: record.error for record in store.records()}[repair.key] == "", "done later counts"
    store.add(repair, outcome(error="again"))
    assert {record.key: record.error for record in store.records()}[repair.key] == "", "done before counts too"


def test_an_sqlite_store_gives_back_what_was_put_into_it(store: Store) -> None:
    check_round_trip(store)


def test_a_run_that_was_cut_off_while_it_was_written_is_not_done(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (victim, _) = cells(1)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_files", cut)
        with pytest.raises(KeyboardInterrupt):
            store.add(victim, outcome())
    assert store.find(victim.key) is None
    assert store.records() == []


def test_a_run_that_was_cut_off_is_called_killed_by_whoever_does_the_cell_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (victim, other) = cells(1)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "_write_files", cut)
        for cell in (victim, other):
            with pytest.raises(KeyboardInterrupt):
                store.add(cell, outcome())

    def statuses() -> dict[str, str]:
        runs = store.client.search_runs([store.experiment])
        return {run.data.tags["unbackdoor.key"]: run.info.status for run in runs}

    assert set(statuses().values()) == {"RUNNING"}
    assert store.find(victim.key) is None
    assert statuses() == {victim.key: "KILLED", other.key: "RUNNING"}
    store.add(victim, outcome(metrics={"acc": 0.5}))
    found = store.find(victim.key)
    assert found is not None
    assert found.metrics == {"acc": 0.5}


def test_mlflow_shows_labels_as_parameters_and_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.bench.store.commit", lambda: "abc-dirty")
    (victim, _) = cells(1, first=3)
    put = store.add(victim, outcome(metrics={"acc": 0.5}))
    shown = store.client.get_run(put.run).data
    assert shown.params == {name: str(value) for name, value in victim.labels.items() if value is not None}
    assert shown.params["seed"] == "3"
    assert shown.tags["mlflow.source.git.commit"] == "abc-dirty"
    assert json.loads(shown.tags["unbackdoor.machine"])["device"] == "cpu (a)"
    (record,) = store.records()
    assert record.commit == put.commit == "abc-dirty"
    monkeypatch.setattr("unbackdoor.bench.store.commit", lambda: "")
    put = store.add(victim, outcome())
    assert "mlflow.source.git.commit" not in store.client.get_run(put.run).data.tags
    assert put.commit == ""


def test_the_commit_is_that_of_this_checkout() -> None:
    if not (Path(__file__).parents[2] / ".git").exists():
        pytest.skip("this is no checkout")
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", commit())


def test_a_database_gives_the_runs_that_mlflow_gives(store: Store) -> None:
    grid = cells(3)
    for place, cell in enumerate(grid):
        told = outcome(metrics={"acc": place / 8, "asr": 0.5}, error="no" if place == 4 else "")
        store.add(cell, replace(told, started=1e9 + 10 * place, seconds=2.5))
    deleted = store.add(grid[0], outcome())
    store.client.delete_run(deleted.run)
    store.client.create_run(store.experiment, tags={"unbackdoor.key": "cut off"})
    store.client.create_run(store.client.create_experiment("another"), tags={"unbackdoor.key": "of another"})
    strange = store.client.create_run(store.experiment)
    store.client.log_metric(strange.info.run_id, "loss", float("nan"))
    store.client.set_terminated(strange.info.run_id)
    found = list(runs_of_database(store.uri, store.experiment))
    assert [run.name for run in found[1:]] == [record.run for record in store.records()]
    expected = list(runs_of_server(store.client, store.experiment, "attributes.status != 'RUNNING'"))
    assert [replace(run, metrics={}) for run in found] == [replace(run, metrics={}) for run in expected]
    assert [str(run.metrics) for run in found[1:]] == [str(run.metrics) for run in expected[1:]]
    assert math.isnan(found[0].metrics["loss"])
    assert len(found) == len(grid) + 1


def test_databases_are_those_that_mlflow_knows() -> None:
    from mlflow.store.db.db_types import DATABASE_ENGINES

    assert set(DATABASE_ENGINES) == DATABASES


def test_a_database_is_read_without_mlflow_which_takes_seconds_to_import(store: Store) -> None:
    for cell in cells(1):
        store.add(cell, outcome())
    read = (
        "import sys; from pathlib import Path; from unbackdoor.bench.store import Store;"
        " print(len(Store(sys.argv[1], Path(sys.argv[2])).records()), 'mlflow' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", read, store.uri, str(store.folder)], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["2", "False"]


def test_an_experiment_that_was_deleted_is_one_sentence(store: Store) -> None:
    store.client.delete_experiment(store.experiment)
    with pytest.raises(OutputError, match=r"was deleted in .*restore it in MLflow"):
        Store(store.uri, store.folder)


def test_without_mlflow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.bench.store.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'unbackdoor\[bench\]'"):
        Store(f"sqlite:///{tmp_path / 'mlflow.db'}", tmp_path)


@pytest.mark.parametrize(
    ("uri", "database"),
    [
        ("sqlite:///runs.db", True),
        ("postgresql+psycopg2://me@host/runs", True),
        ("http://host:5000", False),
        ("https://host", False),
        ("file:///runs", False),
    ],
)
def test_a_database_is_told_from_a_server(uri: str, database: bool) -> None:
    assert is_database(uri) == database


def test_two_that_open_an_empty_store_at_once_both_can(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each saw that the experiment is not there; the other one makes it first."""
    look = store.client.get_experiment_by_name
    answers = iter([lambda _: None])

    def asked(name: str) -> object:
        return next(answers, look)(name)

    monkeypatch.setattr(store.client, "get_experiment_by_name", asked)
    assert store._experiment() == store.experiment


def test_figures_that_are_no_numbers_are_left_out(store: Store) -> None:
    (victim, _) = cells(1)
    store.add(victim, outcome(metrics={"acc": 0.5, "loss": float("nan"), "size": float("inf")}))
    (record,) = store.records()
    assert record.metrics == {"acc": 0.5}


def test_files_that_are_gone_are_an_error_that_says_what_to_do(store: Store, tmp_path: Path) -> None:
    (victim, _) = cells(1)
    record = store.add(victim, outcome())
    shutil.rmtree(tmp_path / "files")
    with pytest.raises(InputError, match="delete that run"):
        store.files(record)


def test_a_store_that_does_not_answer_is_not_one_whose_files_are_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is asked again, and no run of it is to be deleted."""
    from mlflow.exceptions import MlflowException

    def fail(*_: object) -> str:
        raise MlflowException("503: not now")

    (victim, _) = cells(1)
    record = store.add(victim, outcome())
    monkeypatch.setattr(store.client, "download_artifacts", fail)
    with pytest.raises(OutputError, match="does not work: 503: not now"):
        store.files(record)


@pytest.mark.parametrize("labels", ['{"attack": ["BadNets"]}', '{"poison_rate": "much"}', '{"seed": true}', "[1]", "{"])
def test_a_run_with_labels_that_nobody_could_sort_is_left_out(
    store: Store, caplog: pytest.LogCaptureFixture, labels: str
) -> None:
    (victim, repair) = cells(1)
    strange = store.add(victim, outcome())
    store.add(repair, outcome())
    store.client.set_tag(strange.run, "unbackdoor.labels", labels)
    assert [record.key for record in store.records()] == [repair.key]
    assert "is left out" in caplog.text


def test_a_store_that_cannot_be_reached_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(OutputError, match=r"the store http://127\.0\.0\.1:9 does not work"):
        Store("http://127.0.0.1:9", tmp_path)
    with pytest.raises((OutputError, InputError), match="store"):
        Store("gopher://nowhere", tmp_path)


def test_the_address_comes_from_mlflows_own_variable(
    store_tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(store_tables, tmp_path / "mine.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mine.db'}")
    (victim, _) = cells(1)
    Store(None, tmp_path / "elsewhere").add(victim, outcome())
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert [record.key for record in Store(f"sqlite:///{tmp_path / 'mine.db'}", tmp_path).records()] == [victim.key]


def test_two_writers_on_one_file_lose_nothing(store: Store, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.bench.noop import cells, outcome; "
        "from unbackdoor.bench.store import Store; store = Store(sys.argv[1], Path(sys.argv[2])); "
        "[store.add(cell, outcome(metrics={'acc': 0.5})) for cell in cells(5, first=int(sys.argv[3]))]"
    )
    words = [sys.executable, "-c", program, store.uri, str(tmp_path)]
    writers = [subprocess.Popen([*words, str(first)]) for first in (0, 100)]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    wanted = {cell.key for first in (0, 100) for cell in cells(5, first=first)}
    assert {record.key for record in store.records()} == wanted


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The address of a database of our own on the loopback address, or a skip."""
    # Debian keeps them off the PATH.
    places = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
    initdb, control = shutil.which("initdb", path=places), shutil.which("pg_ctl", path=places)
    if not initdb or not control:
        pytest.skip("no PostgreSQL here: initdb and pg_ctl are not found")
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    with tempfile.TemporaryDirectory(prefix="unbackdoor-postgres-") as name:
        # PostgreSQL refuses to run as root.
        prefix = []
        if os.geteuid() == 0:
            if subprocess.run(["id", "postgres"], check=False, capture_output=True).returncode:
                pytest.skip("PostgreSQL cannot run as root, and there is no user postgres")
            shutil.chown(name, "postgres")
            prefix = ["runuser", "-u", "postgres", "--"]
        port, data = free_port(), f"{name}/data"
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={name}"
        start = [*prefix, control, "-D", data, "-l", f"{name}/log", "-w", "-o", settings, "start"]
        try:
            for words in ([*prefix, initdb, "-D", data, "-U", "tester", "--auth", "trust"], start):
                subprocess.run(words, check=True, capture_output=True, timeout=120, cwd=name)
        except subprocess.SubprocessError as error:
            pytest.skip(f"PostgreSQL does not start here: {error} {getattr(error, 'stderr', b'')[-300:]!r}")
        yield f"postgresql+psycopg2://tester@127.0.0.1:{port}/postgres"
        subprocess.run([*prefix, control, "-D", data, "-m", "fast", "stop"], check=False, capture_output=True, cwd=name)


@pytest.fixture
def server(postgres: str, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server that keeps its runs in PostgreSQL."""
    port = free_port()
    words = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres, "--workers", "1"]
    words += ["--artifacts-destination", str(tmp_path / "served"), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=environment)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/health", process, tmp_path / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_with_postgresql_gives_back_what_was_put_into_it(server: str, tmp_path: Path) -> None:
    store = Store(server, tmp_path / "local")
    check_round_trip(store)
    assert not (tmp_path / "local" / "mlflow.db").exists()
    assert not (tmp_path / "local" / "files").exists(), "the server keeps the files"


@pytest.mark.slow
def test_a_grid_is_done_through_a_server(server: str, engine: Engine, tmp_path: Path) -> None:
    store = Store(server, tmp_path / "local")
    # The database is that of another test, too.
    grid = cells(2, first=100, fails={3: "input"})
    summary = Bench(store, engine, Silent()).run(grid)
    assert (summary.done, list(summary.failed)) == (3, [grid[3].title])
    records = {record.key: record for record in store.records()}
    assert {cell.key for cell in grid} <= set(records)
    assert store.files(records[grid[1].key])["seen.txt"] == b"victim 100"
    again = Bench(Store(server, tmp_path / "elsewhere"), engine, Silent()).run(grid[:2])
    assert (again.done, again.cached) == (0, 2)


def test_a_password_in_an_address_is_not_shown() -> None:
    assert without_password("postgresql://me:secret@db:5432/runs") == "postgresql://db:5432/runs"
    assert without_password("http://me@host/x@y") == "http://host/x@y"
    assert without_password("sqlite:////home/me/mlflow.db") == "sqlite:////home/me/mlflow.db"


def test_a_run_that_somebody_changed_is_left_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    first, second = cells(1)
    store.add(first, outcome())
    broken = store.add(second, outcome())
    store.client.set_tag(broken.run, "unbackdoor.labels", "{")
    assert [record.key for record in store.records()] == [first.key]
    assert broken.run in caplog.text


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers."""
    for _ in range(240):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"no answer from {address}: {log.read_text()[-2000:]}")


def test_the_newest_run_of_a_cell_that_is_done_is_taken(store: Store) -> None:
    (victim, _) = cells(1)
    first = store.add(victim, outcome(metrics={"acc": 0.1}))
    second = store.add(victim, replace(outcome(metrics={"acc": 0.2}), started=time.time() + 5))
    assert isinstance(first, Record)
    (record,) = store.records()
    assert record.run == second.run


def test_a_run_whose_machine_is_no_text_is_left_out(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    (victim, repair) = cells(1)
    strange = store.add(victim, outcome())
    store.add(repair, outcome())
    store.client.set_tag(strange.run, "unbackdoor.machine", '{"device": 5}')
    assert [record.key for record in store.records()] == [repair.key]
    assert "is left out" in caplog.text
