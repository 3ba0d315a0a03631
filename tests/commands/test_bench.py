"""Grids through the command line, on digits: planned, run, killed, resumed, ranked."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.bench import noop
from tests.processes import children_of, works
from unbackdoor.bench.plan import Step
from unbackdoor.bench.store import Store
from unbackdoor.cli import main
from unbackdoor.cluster import SETTINGS
from unbackdoor.commands.bench import planned

GRID = """
data: digits
networks: {name: PreActResNet18, width: 8}
attacks: [BadNets, None]
recipe: {epochs: 12, learning_rate: 0.1, batch_size: 32, low_resolution: 0}
purify:
  - {name: FT, epochs: 2}
  - {name: SAU, rounds: 2, batch_size: 64}
scan: {name: NeuralCleanse, rounds: 2}
sift: {name: LossIsolation, epochs: 1}
secure: {name: ABL, isolation_epochs: 1, epochs: 1, unlearning_epochs: 1}
clean_sizes: 200
"""

SMALL = """
data: digits
networks: {name: PreActResNet18, width: 16}
attacks: [BadNets, Blended]
recipe: {epochs: 1, learning_rate: 0.05, ema: 0}
purify: {name: FT, epochs: 1}
clean_sizes: 100
"""

CELLS = 14
"""Of the first grid: two victims, each scanned once and repaired twice, and two sets of data, sifted and trained on."""


ONE_CORE = ("--cpus-per-cell", "1")
"""Other tests run at the same time, and threads that wait for each other on busy cores take many times as long."""


def made(folder: Path, tables: Path) -> Path:
    """Return a folder for a store, its tables made already."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(tables, folder / "mlflow.db")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, store_tables: Path) -> Path:
    """A folder with a grid and the store in which it is done."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "grid.yaml").write_text(GRID)
    work = made(folder / "work", store_tables)
    assert main(["bench", str(folder / "grid.yaml"), "--work", str(work), *ONE_CORE]) == 0
    return folder


def test_a_grid_is_done_and_then_found_done(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(finished / "grid.yaml"), "--work", str(finished / "work"), "--json"]
    assert main(["bench", *words]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["cached"], answer["failed"]) == (0, CELLS, {})
    assert main(["bench", *words, "--plan"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["cells"], answer["cached"], answer["to do"]) == (CELLS, CELLS, [])
    assert (answer["seconds"], answer["seconds with so many at a time"]) == (0, 0)
    assert answer["at a time"] >= 1


def test_the_figures_are_those_of_the_commands(finished: Path) -> None:
    """A backdoor that works, a clean model without one, and repairs that were measured before and after."""
    records = Store(None, finished / "work").records()
    victims = {record.labels["attack"]: record for record in records if record.kind == "victim"}
    assert victims["BadNets"].metrics["asr"] > 0.8
    assert "asr" not in victims["None"].metrics
    assert all(record.metrics["acc"] > 0.8 for record in victims.values())
    repairs = [record for record in records if record.kind == "purify" and record.labels["attack"] == "BadNets"]
    for record in repairs:
        before, after = victims["BadNets"].metrics, record.metrics
        fell = max(0.0, before["asr"] - after["asr"]) - max(0.0, before["acc"] - after["acc"])
        assert record.metrics["der"] == pytest.approx((fell + 1) / 2)
        assert record.metrics["acc_low"] < record.metrics["acc"] < record.metrics["acc_high"]
        assert record.metrics["seconds"] > 0
        assert record.metrics["peak_mb"] > 50
        assert record.metrics["der_low"] < record.metrics["der"] < record.metrics["der_high"]
    scans = {record.labels["attack"]: record.metrics for record in records if record.kind == "scan"}
    assert (scans["BadNets"]["backdoored"], scans["None"]["backdoored"]) == (1, 0)


def test_every_cell_has_its_page(finished: Path) -> None:
    store = Store(None, finished / "work")
    for record in store.records():
        page = store.files(record)["report.html"].decode()
        assert str(record.labels["attack"]) in page
        assert str(record.labels["method"] or {"poison": "poisoned rows"}.get(record.kind, "training loss")) in page
        backdoored = record.labels["attack"] == "BadNets"
        assert ("the true trigger, on grey" in page) == (backdoored and record.kind == "scan")
        assert ("What the trigger does" in page) == (backdoored and record.kind in ("victim", "poison"))


def test_another_option_is_another_victim_and_another_seed_too(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change, left in (("clean_sizes: 100", 6), ("seeds: [0, 1]", CELLS), ("precision: fp32", CELLS)):
        text = GRID.replace("clean_sizes: 200", change) if "clean" in change else f"{GRID}{change}\n"
        (tmp_path / "grid.yaml").write_text(text)
        words = [str(tmp_path / "grid.yaml"), "--work", str(finished / "work"), "--plan", "--json"]
        assert main(["bench", *words]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert len(answer["to do"]) == left, change
        assert answer["of unknown length"] == 0, f"{change}: something of the same method was done before"
        assert 0 < answer["seconds with so many at a time"] <= answer["seconds"] + 1e-6


@pytest.mark.slow
def test_a_model_that_is_there_already_is_repaired_without_training_one(
    victim: Path, tmp_path: Path, store_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(
        f"data: digits\nmodels: {victim}\npurify: {{name: FT, epochs: 1}}\nscan: {{name: NeuralCleanse, rounds: 1}}\n"
        "clean_sizes: 100\n"
    )
    work = made(tmp_path / "work", store_tables)
    assert main(["bench", str(tmp_path / "grid.yaml"), "--work", str(work), *ONE_CORE]) == 0
    records = {record.kind: record for record in Store(None, work).records()}
    assert set(records) == {"victim", "purify", "scan"}
    assert records["victim"].labels["training"] == f"given: {victim.name}"
    assert records["victim"].duration < 60, "nothing was trained"
    capsys.readouterr()
    words = ["evaluate", "--model", str(victim / "model.safetensors"), "--attack", str(victim), "--data", "digits"]
    assert main([*words, "--out", str(tmp_path / "evaluated"), "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)["evaluation"]
    for share in ("acc", "asr", "ra"):
        assert records["victim"].metrics[share] == pytest.approx(expected[share]["value"])
    assert records["purify"].metrics["der"] > 0
    assert records["scan"].metrics["backdoored"] == 1


def test_the_leaderboard_has_every_method_and_every_cell(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--work", str(finished / "work"), "--grid", str(finished / "grid.yaml"), "--out", str(tmp_path)]
    assert main(["leaderboard", *words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert sorted(answer["methods"]) == ["FT epochs=2", "SAU rounds=2 batch_size=64"]
    assert answer["scanners"] == ["NeuralCleanse rounds=2"]
    assert answer["sifters"] == ["LossIsolation epochs=1"]
    assert answer["secure trainers"] == ["ABL isolation_epochs=1 epochs=1 unlearning_epochs=1"]
    (sifted,) = pd.read_csv(tmp_path / "sift.csv").to_dict("records")
    assert 0 <= sifted["auroc"] <= 1
    assert sifted["clean"] == pytest.approx(0.01, abs=0.001), "of clean data, a hundredth by design"
    (secured,) = pd.read_csv(tmp_path / "secure.csv").to_dict("records")
    assert 0 <= secured["der"] <= 1, "the grid has the undefended victim"
    told = pd.read_parquet(tmp_path / "cells.parquet")
    assert {"host", "threads", "torch", "commit"} <= set(told.columns)
    assert told.loc[told["kind"] == "secure", "der_low"].notna().any()
    assert (tmp_path / "scan.csv").exists()
    cells = pd.read_csv(tmp_path / "cells.csv")
    assert len(cells) == CELLS
    assert len(pd.read_parquet(tmp_path / "cells.parquet")) == CELLS
    assert set(pd.read_csv(tmp_path / "ranking.csv")["method"]) == set(answer["methods"])
    assert "SAU rounds=2 batch\\_size=64" in (tmp_path / "ranking.tex").read_text()
    assert "SAU rounds=2 batch_size=64" in (tmp_path / "report.html").read_text()


def test_an_empty_store_has_no_leaderboard(
    tmp_path: Path, store_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = made(tmp_path / "work", store_tables)
    assert main(["leaderboard", "--work", str(work), "--out", str(tmp_path / "out")]) == 2
    assert "run a grid first" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\nattacks: [BadNet]\n", "line 2: unknown attack 'BadNet'; did you mean BadNets?"),
        ("data: digits\nattack: BadNets\n", "line 2: unknown name 'attack'; did you mean attacks?"),
        ("data: digits\nattacks: BadNets\nseeds: [-1]\n", "line 3: expected a whole number of at least 0"),
        ("data: [\n", "this is not YAML"),
    ],
)
def test_a_wrong_grid_is_one_sentence_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    assert main(["bench", str(tmp_path / "grid.yaml"), "--work", str(tmp_path / "work")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "work").exists()


def test_a_failed_cell_is_exit_code_3_and_the_others_are_done(
    tmp_path: Path, store_tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SMALL.replace("Blended", "{name: Blended, poison_rate: 0.0001}")
    (tmp_path / "grid.yaml").write_text(text)
    work = made(tmp_path / "work", store_tables)
    assert main(["bench", str(tmp_path / "grid.yaml"), "--work", str(work), *ONE_CORE, "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["done"] == 2
    ((title, reason),) = answer["failed"].items()
    assert "Blended" in title
    assert "is no image; raise it" in reason
    assert len(answer["not begun"]) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_grid_goes_on_and_repeats_nothing(tmp_path: Path, store_tables: Path) -> None:
    """kill -9 of the process that was started, not of its children: these must go with it."""
    (tmp_path / "grid.yaml").write_text(SMALL)
    work = made(tmp_path / "work", store_tables)
    words = [sys.executable, "-m", "unbackdoor.cli", "bench", str(tmp_path / "grid.yaml"), "--work", str(work)]
    words += ONE_CORE
    killed = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    store = Store(None, work)
    for _ in range(1200):
        if store.records():
            break
        assert killed.poll() is None
        time.sleep(0.1)
    children = children_of(killed.pid)
    assert children
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    deadline = time.monotonic() + 60
    # Ray's own agents look for their parent once in a while only, and do nothing.
    while any(works(child) for child in children):
        assert time.monotonic() < deadline, "what it started is still at work"
        time.sleep(0.2)
    before = {record.run for record in store.records()}
    assert 1 <= len(before) < 4
    assert subprocess.run(words, check=False, capture_output=True, timeout=300).returncode == 0
    after = {record.run for record in store.records()}
    assert len(after) == 4
    assert before < after, "what was done is still the same run"


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "ray_client_server_port": int(sys.argv[1])})
print("started", flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_grid_runs_on_a_cluster_that_is_reached_from_outside(tmp_path: Path, store_tables: Path) -> None:
    """By Ray's client: this machine is not one of the cluster's, and has the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "grid.yaml").write_text(SMALL.replace(", Blended", ""))
    work = made(tmp_path / "work", store_tables)
    # Without this, the server of Ray's client now and then hangs where it starts a process (Ray 2.60).
    environment = {**os.environ, **SETTINGS, "GRPC_ENABLE_FORK_SUPPORT": "0"}
    words = ["bench", str(tmp_path / "grid.yaml"), "--work", str(work), "--address", f"ray://127.0.0.1:{port}"]
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    ) as cluster:
        assert cluster.stdout
        assert b"started" in cluster.stdout.readline()
        ran = subprocess.run(
            [sys.executable, "-m", "unbackdoor.cli", *words, "--json"],
            check=False,
            capture_output=True,
            timeout=300,
            text=True,
            env=environment,
        )
        cluster.communicate()
    assert ran.returncode == 0, ran.stderr
    answer = json.loads(ran.stdout)
    assert (answer["done"], answer["failed"]) == (2, {})
    kinds = {record.kind: record for record in Store(None, work).records()}
    assert set(kinds) == {"victim", "purify"}
    assert not (work / "cells").exists(), "cells ran elsewhere"


def test_a_plan_tells_the_time_with_as_many_cells_at_a_time_as_fit() -> None:
    steps = [Step(cell, cached=False, seconds=60.0) for cell in (noop.victim(0), noop.victim(1))]
    steps += [Step(noop.victim(2), cached=False, seconds=None), Step(noop.victim(3), cached=True, seconds=0.0)]
    told = planned("grid.yaml", steps, 2)
    assert (told.result["seconds"], told.result["of unknown length"]) == (120, 1)
    assert (told.result["at a time"], told.result["seconds with so many at a time"]) == (2, 60)
    assert told.rows[-2][0] == "in all, one cell at a time"
    assert told.rows[-1] == ("in all, as many at a time as fit: 2", "about 60 s, without the 1 of unknown length")
