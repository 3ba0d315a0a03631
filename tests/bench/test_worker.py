"""A cell is done, and whatever goes wrong in it comes back as part of what came of it."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.noop import LARGE, MADE, SEEN, STATE, cells, repair, times_run, victim
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.worker import DETAILS, CellOutcome, forget_peaks, measured, peaks, perform


def do(cell: Cell, work: Path, given: dict[str, bytes] | None = None) -> CellOutcome:
    return perform(cell, given or {}, work, "cpu", 1)


def test_a_cell_gives_back_its_metrics_its_files_and_where_it_ran(tmp_path: Path) -> None:
    before = time.time()
    outcome = do(victim(7), tmp_path)
    assert outcome.error == outcome.trace == ""
    assert {name: outcome.metrics[name] for name in ("number", "acc", "resumed")} == {
        "number": 7,
        "acc": 0.9,
        "resumed": 0,
    }
    assert set(outcome.files) == {MADE, LARGE, DETAILS}
    assert outcome.files[MADE] == b"victim 7"
    assert before <= outcome.started <= time.time()
    assert outcome.machine["device"].startswith("cpu")
    assert {"host", "unbackdoor", "torch", "python", "threads"} <= set(outcome.machine)
    assert outcome.machine["threads"] == "1"


def test_which_files_are_optional_is_passed_on(tmp_path: Path) -> None:
    outcome = do(victim(0), tmp_path)
    assert outcome.optional == {LARGE}
    assert outcome.files[LARGE] == bytes(1000), "whoever keeps the files decides"


def test_what_came_of_a_cell_can_be_sent(tmp_path: Path) -> None:
    outcome = do(victim(0), tmp_path)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_a_cell_finds_the_files_of_the_one_that_it_needs(tmp_path: Path) -> None:
    first, second = cells(1, first=7)
    outcome = do(second, tmp_path, dict(do(first, tmp_path).files))
    assert outcome.error == ""
    assert outcome.metrics["needed"] == 7
    assert outcome.files[SEEN] == b"victim 7"
    assert outcome.files[MADE] == b"purify 7"


def test_a_cell_without_the_files_that_it_needs_fails(tmp_path: Path) -> None:
    outcome = do(repair(victim(7)), tmp_path)
    assert outcome.error.startswith("FileNotFoundError: ")
    assert outcome.files == {}


def test_bad_input_is_told_in_its_own_sentence(tmp_path: Path) -> None:
    outcome = do(victim(0, fails="input", sentence="the rate is too high; lower it"), tmp_path)
    assert outcome.error == "the rate is too high; lower it"
    assert outcome.trace == "", "no defect, so nobody needs to know where"
    assert outcome.files == {}
    assert outcome.metrics == {}
    assert outcome.machine["device"].startswith("cpu")


def test_a_failure_without_a_word_is_still_one(tmp_path: Path) -> None:
    assert do(victim(0, fails="input", sentence=""), tmp_path).error != ""
    assert do(victim(0, fails="defect", sentence=""), tmp_path).error.startswith("ValueError")


def test_a_defect_is_told_with_its_kind_and_its_place(tmp_path: Path) -> None:
    outcome = do(victim(0, fails="defect", sentence="no such row"), tmp_path)
    assert outcome.error == "ValueError: no such row"
    assert outcome.trace.startswith("Traceback")
    assert "noop.py" in outcome.trace
    assert outcome.files == {}


def test_a_file_that_is_promised_and_not_there_is_a_defect(tmp_path: Path) -> None:
    outcome = do(victim(0, fails="forget"), tmp_path)
    assert outcome.error.startswith("FileNotFoundError")
    assert MADE in outcome.error
    assert outcome.trace


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_bad_input_of_that_cell(tmp_path: Path) -> None:
    outcome = perform(victim(0), {}, tmp_path, "cuda", 1)
    assert "device cuda is not available here" in outcome.error
    assert outcome.trace == ""


@pytest.mark.parametrize("how", [None, "input", "defect", "forget"])
def test_neither_success_nor_failure_leaves_anything_behind(tmp_path: Path, how: str | None) -> None:
    do(victim(0, fails=how), tmp_path, {MADE: b"given"})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_cell_finds_its_folder_again(tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    cell = victim(0, counted, fails="interrupt")
    with pytest.raises(KeyboardInterrupt):
        do(cell, tmp_path)
    assert (tmp_path / cell.key / STATE).exists()
    assert do(victim(1), tmp_path).metrics["resumed"] == 0, "another cell has a folder of its own"
    outcome = do(cell, tmp_path)
    assert outcome.metrics["resumed"] == 1
    assert times_run(counted) == {cell.key: 2}
    assert [path.name for path in tmp_path.iterdir()] == ["counted"]


def test_the_largest_memory_is_that_of_the_cell_and_not_of_one_before(tmp_path: Path) -> None:
    assert do(victim(0), tmp_path).metrics["peak_mb"] > 0
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this system does not let a process forget its peak")
    forget_peaks()
    large = np.ones(150 * 2**20, dtype=np.uint8)
    with_large = peaks()["peak_mb"]
    del large
    assert do(victim(0), tmp_path).metrics["peak_mb"] < with_large - 100


def test_a_piece_of_work_costs_the_time_that_passes_and_that_of_the_processor() -> None:
    with measured() as cost:
        time.sleep(0.1)
    assert 0.1 <= cost.seconds < 10
    assert 0 <= cost.cpu_seconds < cost.seconds
    with measured() as cost:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
    assert 0.1 <= cost.cpu_seconds <= cost.seconds + 0.05
    assert cost.to_metrics() == {"seconds": round(cost.seconds, 2), "cpu_seconds": round(cost.cpu_seconds, 2)}
