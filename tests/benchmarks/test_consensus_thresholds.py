"""The program that looks at thresholds of Consensus: what it measures, and which pair it names."""

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
    return {"rows": rows, "poisoned": poisoned, "movement": strength, "loss": strength, "apart": apart}


def of(attack: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"attack": attack, "parts": list(parts), "seed": "10", "device": "cpu", "threads": "1", "torch": "2"}


def test_a_run_is_judged_by_the_rows_of_the_parts_that_thresholds_accuse(program: ModuleType) -> None:
    row = of("BadNets", part(100, 80, 1.6, 5.0), part(100, 20, 0.9, 5.0), part(300, 0, 1.6, 2.9))
    assert program.judged(row, 1.0, 3.0) == {"attack": "BadNets", "tpr": 0.8, "fpr": 20 / 400}
    assert program.judged(row, 0.75, 3.0) == {"attack": "BadNets", "tpr": 1.0, "fpr": 100 / 400}
    assert program.judged(of("None", part(50, 0, 2.0, 9.0), part(150, 0, 0.0, 9.0)), 1.0, 3.0) == {
        "attack": "None",
        "fpr": 0.25,
    }


def test_the_pair_named_spares_clean_rows_first_and_is_then_the_one_that_finds_most(program: ModuleType) -> None:
    poison, clean = part(100, 100, 1.3, 4.2), part(400, 0, 0.1, 0.0)
    easy = part(100, 0, 1.1, 4.1)
    rows = [of("BadNets", poison, clean), of("None", easy, clean)]
    assert program.chosen(rows) == (1.25, 4.0), "higher ones find nothing, and only a higher one spares the easy class"
    assert program.chosen(rows[:1]) is None, "without clean data nothing is known of false alarms"
    text = program.written(rows)
    assert (
        f"evidence 1.25, apart 4. The defaults are evidence {Consensus().evidence:g}, apart {Consensus().apart:g}."
        in text
    )
    assert "| 1 | 4 | 100.00 | 0.00 | 20.00 |" in text
    hidden = [of("BadNets", part(100, 100, 1.6, 9.0)), of("None", part(100, 0, 9.0, 9.0))]
    assert program.chosen([of("BadNets", poison, clean), *hidden[1:]]) is None
    assert "no pair of thresholds" in program.written([of("BadNets", poison, clean), *hidden[1:]])


def test_the_parts_of_a_run_are_those_that_consensus_judges(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROWS", 120)
    monkeypatch.setattr(importlib.import_module("unbackdoor.sift.quick_model"), "LEAST_STEPS", 1)
    row = program.run(pictures(200, 0), "BadNets", runtime(10))
    assert sum(told["rows"] for told in row["parts"]) == row["rows"] == 120
    assert sum(told["poisoned"] for told in row["parts"]) == 12
    assert set(program.judged(row, Consensus().evidence, Consensus().apart)) == {"attack", "tpr", "fpr"}


def test_no_seed_of_the_grid_of_sifters_is_looked_at(program: ModuleType) -> None:
    text = (Path(__file__).parents[2] / "benchmarks" / "grids" / "sift-small.yaml").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("seeds:")]
    assert line == "seeds: [0, 1, 2]"
    assert not {0, 1, 2} & set(program.SEEDS)
