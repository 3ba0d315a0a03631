"""What the full protocol is worked out from, and the store on which the plan of a large grid is timed."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.bench.noop import cells, outcome
from unbackdoor.bench.store import Store

Load = Callable[[str], ModuleType]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """The programs, which are run as files and find their neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module


def test_the_work_of_the_protocol_rests_on_the_cells_that_are_committed(program: Load) -> None:
    scale = program("scale")
    steps, where = scale.measured_steps()
    assert list(steps) == [kind for kind in scale.KINDS if kind in steps]
    assert {"victim", "FT", "FTSAM", "SAU", "NPD"} <= set(steps)
    # A round of FT takes the 2,500 clean samples once, in measured time; FT-SAM takes two gradients for each.
    assert 1_250 < steps["FT"] < 5_000
    assert steps["FT"] < steps["FTSAM"] < steps["SAU"]
    assert steps["victim"] > 10 * steps["FT"]
    assert where.startswith("cpu")


def test_what_had_no_budget_counts_before_what_had(program: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = program("scale")
    rounds = [("FT", 2.0, False), ("FT", 1.0, True), ("NPD", 3.0, True)]
    rounds += [(kind, 9.0, False) for kind in ("victim", "FTSAM", "SAU", "TSBD")]
    machine = scale.measured_steps()[1]
    monkeypatch.setattr(scale, "kept", lambda: [scale.Measured(*one, machine) for one in rounds])
    steps, _ = scale.measured_steps()
    assert steps["FT"] / steps["NPD"] == pytest.approx(2 / 3)


def test_each_measured_defence_stands_for_itself_and_in_turn_for_one_that_was_not(program: Load) -> None:
    scale = program("scale")
    steps = dict.fromkeys(scale.KINDS, 1.0)
    made = scale.work(steps, published=True)
    first = [cell.labels["like"] for cell, _ in made[1:15]]
    assert first[:5] == list(scale.KINDS[1:])
    assert len(first) == scale.DEFENCES
    assert set(first[5:]) == set(first[:5])


def test_a_run_is_copied_with_all_of_its_figures(program: Load, tmp_path: Path, store_tables: Path) -> None:
    pytest.importorskip("playwright", reason="the program also times a page")
    shutil.copy(store_tables, tmp_path / "mlflow.db")
    store = Store(None, tmp_path)
    first, *others = cells(2)
    pattern = store.add(first, outcome(metrics={"acc": 0.5, "asr": 0.25}))
    program("bench_overhead").copy_runs(tmp_path / "mlflow.db", pattern.run, others)
    found = {record.key: record for record in store.records()}
    assert set(found) == {cell.key for cell in (first, *others)}
    for cell in others:
        record = found[cell.key]
        assert (record.kind, record.labels, record.metrics) == (cell.kind, dict(cell.labels), pattern.metrics)
        assert record.run != pattern.run
