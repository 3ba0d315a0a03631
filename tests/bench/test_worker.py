"""A cell is done, and whatever goes wrong in it comes back as part of what came of it."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bench.noop import LARGE, MADE, SEEN, STATE, cells, repair, times_run, victim
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.worker import DETAILS, CellOutcome, Cost, forget_peaks, measured, perform


def do(cell: Cell, work: Path, given: dict[str, bytes] | None = None, *, keep: bool = True) -> CellOutcome:
    return perform(cell, given or {}, work, "cpu", 1, keep)


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


def test_files_that_are_kept_on_request_only_do_not_travel_without_one(tmp_path: Path) -> None:
    assert do(victim(0), tmp_path).files[LARGE] == bytes(1000)
    assert set(do(victim(0), tmp_path, keep=False).files) == {MADE, DETAILS}


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


needs_peaks = pytest.mark.skipif(not forget_peaks(), reason="this system does not let a process forget its peak")


@needs_peaks
def test_the_memory_of_a_piece_of_work_is_its_own_and_not_of_what_is_done_around_it() -> None:
    def use(megabytes: int) -> None:
        assert np.ones(megabytes * 2**20, dtype=np.uint8).all()

    use(400)
    with measured() as small:
        use(1)
    with measured() as large:
        use(200)
    use(400)
    assert small.peak_mb is not None
    assert large.peak_mb is not None
    assert 150 < large.peak_mb - small.peak_mb < 250


ALONE = """
import sys
from functools import partial
import torch
from unbackdoor.bench.worker import measured
from unbackdoor.data import ImageSet
from unbackdoor.models import NETWORKS
from unbackdoor.training import Recipe, Runtime, fit, new_network

RUNTIME = Runtime(device="cpu", threads=1)

def train(width, side, rows):
    images = torch.randint(0, 256, (rows, 3, side, side), dtype=torch.uint8)
    data = ImageSet(images=images, labels=torch.arange(rows) % 2, class_names=("a", "b"), name="c")
    network = new_network(partial(NETWORKS["PreActResNet18"], width=width), data, RUNTIME)
    fit(network, data, Recipe(epochs=1, batch_size=rows), RUNTIME)

if sys.argv[1] == "after":
    train(32, 32, 256)
with measured() as cost:
    train(4, 16, 16)
print(cost.peak_mb)
"""


@needs_peaks
@pytest.mark.slow
def test_a_cell_is_told_to_need_as_much_after_a_large_one_as_in_a_process_of_its_own() -> None:
    def peak(how: str) -> float:
        ran = subprocess.run([sys.executable, "-c", ALONE, how], check=True, capture_output=True, text=True)
        return float(ran.stdout)

    alone, after = peak("alone"), peak("after")
    assert abs(after - alone) < 0.1 * alone


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
    times = {"seconds": round(cost.seconds, 2), "cpu_seconds": round(cost.cpu_seconds, 2)}
    assert cost.to_metrics() == {**times, **({"peak_mb": cost.peak_mb} if cost.peak_mb else {})}


def test_of_two_pieces_of_work_times_add_up_and_the_larger_memory_stays() -> None:
    cost = Cost(seconds=2.0, cpu_seconds=3.0, peak_mb=500.0)
    cost.add({"seconds": 1.0, "cpu_seconds": 1.5, "peak_mb": 400.0, "peak_gpu_mb": 70.0})
    assert cost == Cost(seconds=3.0, cpu_seconds=4.5, peak_mb=500.0, peak_gpu_mb=70.0)
    cost.add({})
    assert cost.to_metrics() == {"seconds": 3.0, "cpu_seconds": 4.5, "peak_mb": 500.0, "peak_gpu_mb": 70.0}
