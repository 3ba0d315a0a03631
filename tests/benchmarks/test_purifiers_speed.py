"""The program that times ours beside the plain ones: what it measures, and what it writes of that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.naive import NAIVE
from unbackdoor.data import ImageSet
from unbackdoor.options import options_of
from unbackdoor.purify import CLP, EP, TSBD


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import purifiers_speed

        yield purifiers_speed


def images(count: int, seed: int) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return ImageSet(images=pixels, labels=torch.arange(count) % 10, class_names=tuple("abcdefghij"))


def run(seconds: float, acc: float = 0.9, others: float = 0.0) -> dict[str, Any]:
    return {"seconds": seconds, "cpu_seconds": 2 * seconds, "acc": acc, "asr": 0.1, "others": others, "peak_mb": 500.0}


def row(program: ModuleType, name: str, ours: list[dict[str, Any]], naive: list[dict[str, Any]]) -> dict[str, Any]:
    method = next(one for one in program.METHODS if type(one).__name__ == name)
    machine = {"device": "cpu", "threads": "2", "torch": "2"}
    return {"method": name, "options": options_of(method), "ours": ours, "naive": naive, **machine}


def test_every_plain_purifier_is_measured_once(program: ModuleType) -> None:
    assert sorted(type(method).__name__ for method in program.METHODS) == sorted(NAIVE)
    assert set(program.AIMS) <= set(NAIVE)


@pytest.mark.parametrize("plain", [False, True])
def test_a_run_measures_cost_and_worth(program: ModuleType, plain: bool) -> None:
    found = program.run(CLP(choose=False), plain, 0, images(20, 0), images(40, 1), "cpu", 1)
    assert 0 < found["seconds"] < 60
    assert found["peak_mb"] > 100
    assert 0 <= found["acc"] <= 1
    assert 0 <= found["asr"] <= 1
    assert found["machine"]["threads"] == "1"


def test_the_table_tells_ratios_aims_and_whether_both_are_worth_the_same(program: ModuleType) -> None:
    rows = [
        row(program, "FT", [run(10), run(12)], [run(30), run(36)]),
        row(program, "NPD", [run(10)], [run(30, acc=0.8)]),
        row(program, "TSBD", [run(10)], [run(90, others=60)]),
    ]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in program.written(rows).splitlines()]
    speeds = {line[0]: line for line in lines if len(line) == 11}
    assert speeds["FT"][1:9] == ["epochs 6", "11.0", "33.0", "22.0", "66.0", "3.00", "3", "yes"]
    assert speeds["NPD"][6:9] == ["3.00", "6", "no"]
    assert (speeds["TSBD"][6], speeds["TSBD, one n"][6]) == ("9.00", "3.00")
    alike = {line[0]: line[-1] for line in lines if len(line) == 6}
    assert (alike["FT"], alike["NPD"]) == ("yes", "no")


@pytest.mark.parametrize(("naive", "alike"), [((0.90, 0.92), "yes"), ((0.913, 0.913), "no"), ((0.88, 0.94), "yes")])
def test_both_are_worth_the_same_if_their_means_differ_by_no_more_than_the_wider_spread(
    program: ModuleType, naive: tuple[float, float], alike: str
) -> None:
    """One point more is no difference only where the seeds differ as much."""
    rows = [row(program, "FT", [run(10, acc=0.895), run(10, acc=0.905)], [run(30, acc=acc) for acc in naive])]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in program.written(rows).splitlines()]
    (worth,) = [line for line in lines if len(line) == 6 and line[0] == "FT"]
    assert worth[-1] == alike
    rows = [row(program, "FT", [run(10, acc=0.90)], [run(30, acc=0.91)])]
    assert "| no |" in program.written(rows)


def test_a_method_that_needs_the_training_data_is_given_them(program: ModuleType) -> None:
    found = program.run(EP(images=20), True, 0, images(20, 0), images(40, 1), "cpu", 1, images(30, 2))
    assert 0 <= found["acc"] <= 1


def test_a_method_is_done_if_it_was_measured_with_the_same_schedule(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "HERE", tmp_path)
    bench = program.Bench(tmp_path, "cpu", 1)
    assert bench.done() == []
    other = row(program, "TSBD", [run(1)], [run(2)])
    bench.rows.append({**other, "options": options_of(TSBD(epochs=7)), "revision": TSBD.revision})
    bench.rows.append(other)
    assert bench.done() == [], "measured before the method changed"
    other["revision"] = TSBD.revision
    bench.rows.append(other)
    assert [one["method"] for one in bench.done()] == ["TSBD"]
    bench.write()
    assert "1 of 16 methods" in (tmp_path / "results" / "purifiers_speed.md").read_text()
