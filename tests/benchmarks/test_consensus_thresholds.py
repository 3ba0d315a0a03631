"""The program that looks at the threshold of Consensus: what it measures, and which value it names."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.planted import pictures, runtime
from unbackdoor.sift import Consensus


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("consensus_thresholds")


def part(rows: int, poisoned: int, strength: float, apart: float) -> dict[str, Any]:
    return {"rows": rows, "poisoned": poisoned, "movement": strength, "loss": strength, "apart": apart, "ahead": True}


def of(attack: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"attack": attack, "parts": list(parts), "seed": "10", "device": "cpu", "threads": "1", "torch": "2"}


def test_a_run_is_judged_by_the_rows_of_the_parts_that_a_threshold_accuses(program: ModuleType) -> None:
    # Of suspicion 5.7, 3.2 and 1.9.
    row = of("BadNets", part(100, 80, 1.6, 5.0), part(100, 20, 0.9, 5.0), part(300, 0, 1.6, 2.9))
    assert program.judged(row, 4.0) == {"attack": "BadNets", "tpr": 0.8, "fpr": 20 / 400}
    assert program.judged(row, 3.0) == {"attack": "BadNets", "tpr": 1.0, "fpr": 100 / 400}
    clean = of("None", part(50, 0, 2.0, 9.0), part(150, 0, 0.0, 9.0))
    assert program.judged(clean, 3.0) == {"attack": "None", "fpr": 0.25}


def test_the_threshold_named_spares_clean_rows_finds_most_and_lies_in_the_middle(program: ModuleType) -> None:
    # Of suspicion 5.7, 0.1 and 3.2.
    poison, clean, easy = part(100, 100, 1.6, 5.0), part(400, 0, 0.1, 0.0), part(100, 0, 1.4, 4.0)
    rows = [of("BadNets", poison, clean), of("None", easy, clean)]
    assert program.chosen(rows) == 4.0, "3.5 and 5 do as well; 6 finds nothing, and 3 does not spare the easy class"
    assert program.chosen(rows[:1]) is None, "without clean data nothing is known of false alarms"
    text = program.written(rows)
    assert f"in the middle: 4. The default is {Consensus().threshold:g}." in text
    assert "| 3 | 100.00 | 0.00 | 20.00 |" in text
    never = [of("BadNets", poison, clean), of("None", part(100, 0, 9.0, 9.0))]
    assert program.chosen(never) is None
    assert "in the middle: no value." in program.written(never)


def test_the_parts_of_a_run_are_those_that_consensus_judges(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROWS", 120)
    monkeypatch.setattr(importlib.import_module("unbackdoor.sift.quick_model"), "LEAST_STEPS", 1)
    row = program.run(pictures(200, 0), "BadNets", runtime(10))
    assert sum(told["rows"] for told in row["parts"]) == row["rows"] == 120
    assert sum(told["poisoned"] for told in row["parts"]) == 12
    assert set(program.judged(row, Consensus().threshold)) == {"attack", "tpr", "fpr"}


def test_no_seed_of_the_grid_of_sifters_is_looked_at(program: ModuleType) -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "grids" / "sift-small.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("seeds:")]
    assert line == "seeds: [1, 2, 3, 4]"
    assert not {1, 2, 3, 4} & set(program.SEEDS)
