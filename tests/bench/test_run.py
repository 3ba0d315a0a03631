"""A grid does every cell once, whatever fails, whoever else works on it, and however it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.bench.noop import cells, repair, times_run, victim
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.engine import Engine
from unbackdoor.bench.run import Bench, Summary
from unbackdoor.bench.store import Store
from unbackdoor.errors import InputError, OutputError
from unbackdoor.training import Silent


def run(store: Store, engine: Engine, grid: list[Cell]) -> Summary:
    return Bench(store, engine, Silent()).run(grid)


def test_every_cell_is_done_once_and_never_again(store: Store, engine: Engine, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    grid = cells(3, counted=counted)
    first = run(store, engine, grid)
    assert (first.done, first.cached, first.failed, first.lost) == (len(grid), 0, {}, [])
    again = run(store, engine, grid)
    assert (again.done, again.cached) == (0, len(grid))
    assert times_run(counted) == {cell.key: 1 for cell in grid}
    assert {path.name for path in store.locks.iterdir()} <= {"store.lock"}, "no lock of a cell is left"


def test_a_failure_is_kept_and_the_others_go_on(store: Store, engine: Engine, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    grid = cells(3, counted=counted, fails={2: "input", 5: "defect"})
    summary = run(store, engine, grid)
    failed = {grid[2].title, grid[5].title}
    assert set(summary.failed) == failed
    lost = {cell.title for cell in grid if cell.needs and cell.needs.title in failed}
    assert set(summary.lost) == lost
    assert summary.done == len(grid) - 2 - len(lost)
    errors = {record.key: record.error for record in store.records() if record.error}
    assert set(errors) == {grid[2].key, grid[5].key}
    assert "ValueError" in errors[grid[5].key]
    run(store, engine, grid)
    assert times_run(counted)[grid[2].key] == 2, "what failed is tried again"
    assert times_run(counted)[grid[0].key] == 1


def test_a_cell_gets_the_files_of_the_one_that_it_needs(store: Store, engine: Engine) -> None:
    grid = cells(1)
    run(store, engine, grid)
    records = {record.key: record for record in store.records()}
    assert store.files(records[grid[1].key])["seen.txt"] == store.files(records[grid[0].key])["made.txt"]


def test_files_that_are_optional_are_kept_on_request_only(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = cells(1), cells(1, first=50)
    run(store, engine, first)
    monkeypatch.setattr(engine, "keep_optional", True)
    run(store, engine, second)
    records = {record.key: record for record in store.records()}
    assert "large.bin" not in store.files(records[first[0].key])
    assert "large.bin" in store.files(records[second[0].key])


def test_a_cell_that_another_bench_does_is_waited_for(
    store: Store, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr("unbackdoor.bench.run.PATIENCE", 0.2)
    counted = tmp_path / "counted"
    grid = cells(1, counted=counted)
    other = FileLock(store.locks / f"{grid[0].key}.lock")
    other.acquire()
    finished: list[Summary] = []
    worker = threading.Thread(target=lambda: finished.append(run(store, engine, grid)))
    worker.start()
    worker.join(3)
    assert worker.is_alive(), "it waits"
    assert times_run(counted) == {}
    from tests.bench.noop import outcome

    store.add(grid[0], outcome(files={"made.txt": b"by the other", "details.json": b'{"number": 0}'}))
    other.release()
    worker.join(60)
    assert finished[0].done == 1
    assert finished[0].cached == 1
    assert times_run(counted) == {grid[1].key: 1}


def test_a_cell_whose_process_dies_is_begun_again(store: Store, engine: Engine, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    grid = cells(1, counted=counted, fails={0: "die once"})
    summary = run(store, engine, grid)
    assert summary.failed == {}
    assert times_run(counted)[grid[0].key] == 2


@pytest.mark.slow
def test_a_cell_whose_process_always_dies_fails_alone(store: Store, engine: Engine) -> None:
    grid = cells(2, fails={0: "die"})
    summary = run(store, engine, grid)
    assert list(summary.failed) == [grid[0].title]
    assert "Ray lost it" in summary.failed[grid[0].title]
    assert summary.done == 2


def test_ray_cannot_be_reached_from_elsewhere(engine: Engine) -> None:
    import ray

    assert engine.capacity() >= 1
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpus": 0}, "at least 1 core"),
        ({"gpus": -1.0}, "--gpus-per-cell"),
        ({"gpus": 1.5}, "whole GPUs"),
        ({"gpus": 0.00001}, "at least 0.001"),
        ({"cpus": 10_000}, "no machine has the 10000 cores"),
        ({"device": "cuda", "gpus": 0.0}, "needs --gpus-per-cell above 0"),
    ],
)
def test_what_no_machine_has_is_one_sentence(engine: Engine, tmp_path: Path, options: dict, message: str) -> None:
    given = {"address": None, "cpus": None, "gpus": None, "device": "cpu", "work": tmp_path, **options}
    with pytest.raises(InputError, match=message), Engine(**given):
        pass


def test_a_store_that_fails_for_a_moment_costs_nothing(
    store: Store, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.bench.run.PAUSES", (0.01, 0.01))
    counted = tmp_path / "counted"

    def sometimes(ask: Callable[..., Any]) -> Callable[..., Any]:
        failures = iter([OutputError("down"), OutputError("down")])

        def asked(*words: Any) -> Any:
            for failure in failures:
                raise failure
            return ask(*words)

        return asked

    for name in ("add", "find", "files"):
        monkeypatch.setattr(store, name, sometimes(getattr(store, name)))
    grid = cells(1, counted=counted)
    assert run(store, engine, grid).done == 2
    assert times_run(counted) == {cell.key: 1 for cell in grid}


def test_the_files_of_a_victim_are_fetched_and_handed_over_once_for_all_that_start_from_it(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    handed: list[dict[str, bytes]] = []
    files, put = store.files, engine.put
    monkeypatch.setattr(store, "files", lambda record: fetched.append(record.key) or files(record))
    monkeypatch.setattr(engine, "put", lambda content: handed.append(content) or put(content))
    grid = [made for number in (0, 1) for made in several(number)]
    bench = Bench(store, engine, Silent())
    assert bench.run(grid).done == len(grid)
    assert sorted(fetched) == sorted(cell.key for cell in grid if not cell.needs)
    assert len(handed) == 2
    assert bench.given == {}, "nothing is kept that no cell needs any more"


def several(number: int) -> list[Cell]:
    """Return a victim with three repairs."""
    base = victim(number)
    return [base, *(repair(base, place, method=f"M{place}") for place in range(3))]


def test_benches_with_folders_of_their_own_share_the_locks_of_their_store(tmp_path: Path, store_tables: Path) -> None:
    shutil.copy(store_tables, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    first, second = (Store(uri, tmp_path / name) for name in ("a", "b"))
    assert first.locks == second.locks
    assert Store(f"sqlite:///{tmp_path / 'x' / '..' / 'mlflow.db'}", tmp_path / "c").locks == first.locks
    shutil.copy(store_tables, tmp_path / "other.db")
    assert Store(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "a").locks != first.locks


def test_a_cluster_that_goes_while_a_cell_runs_is_one_sentence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client raises no error of Ray then."""
    reference = engine.submit(victim(0), None)

    def gone(_: object) -> object:
        raise ConnectionError("the channel was closed")

    monkeypatch.setattr(engine._ray, "get", gone)
    with pytest.raises(OutputError, match="the Ray cluster is gone: the channel was closed; the same command goes on"):
        engine.result(reference)


TWO = """
import sys
from tests.bench.noop import Noop
from unbackdoor.bench.grid import DOMAINS
from unbackdoor.cli import main

DOMAINS._members["Noop"] = Noop
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_two_commands_on_one_store_do_every_cell_once(tmp_path: Path, store_tables: Path) -> None:
    """Each with a folder of its own, as two people would."""
    shutil.copy(store_tables, tmp_path / "mlflow.db")
    (tmp_path / "grid.yaml").write_text("domain: Noop\ncount: 10\nseconds: 1\n")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    words = [sys.executable, "-c", TWO, "bench", str(tmp_path / "grid.yaml"), "--store", uri, "--cpus-per-cell", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen(
            [*words, "--work", str(tmp_path / name), "--json"], stdout=subprocess.PIPE, env=environment, text=True
        )
        for name in ("a", "b")
    ]
    answers = [json.loads(one.communicate(timeout=300)[0]) for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert sum(answer["done"] for answer in answers) == 20
    assert all(answer["done"] + answer["cached"] == 20 for answer in answers)
    assert all(answer["done"] for answer in answers), "they worked at the same time, or this proves nothing"
    store = Store(uri, tmp_path)
    runs = store.client.search_runs([store.experiment])
    assert Counter(run.info.status for run in runs) == {"FINISHED": 20}
    assert len({run.data.tags["unbackdoor.key"] for run in runs}) == 20
