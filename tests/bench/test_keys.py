"""What a cell is known by stays the same while its result does, and changes when that does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench.noop import repair, victim
from unbackdoor.attacks import BadNets
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.victims import recipe_of
from unbackdoor.purify import ANP, FT, FTSAM, IBAU, MCR, NPD, RNP, SAU, TSBD, Purifier
from unbackdoor.scan import Scanner, TSBDSignals, Verdict
from unbackdoor.secure import DST
from unbackdoor.sift import FCT, Consensus

ROOT = Path(__file__).parents[2]


def test_keys_are_those_under_which_finished_cells_are_kept() -> None:
    assert victim(1).key == "48060083a111ec436bfd398cfcdde907f0172f30c5d67f228c22f4830d701dde"
    assert repair(victim(1)).key == "035d415f740d147a05dd24de1f8877c61efee7ae5eec55cdab4bbd93b312e061"


def test_a_method_whose_results_changed_is_another_one_and_no_other_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "revision" not in recipe_of(FT()), "the keys of what never changed stay"
    assert "revision" not in recipe_of(BadNets())
    before, other = recipe_of(SAU()), recipe_of(FT())
    monkeypatch.setattr(SAU, "revision", 1)
    assert recipe_of(SAU()) == {**before, "revision": 1}
    assert recipe_of(FT()) == other
    sau, cell = repair(victim(1), recipe=before), repair(victim(1), recipe=recipe_of(SAU()))
    assert sau.key != cell.key


@pytest.mark.parametrize("method", [FCT(), Consensus(), DST()], ids=lambda method: type(method).__name__)
def test_what_goes_by_fct_is_not_what_it_was_before_fct_drew_by_pixels(method: FCT | Consensus | DST) -> None:
    assert recipe_of(method)["revision"] >= 1


@pytest.mark.parametrize(
    "method",
    [ANP(), FTSAM(), IBAU(), MCR(), RNP(), TSBD(), TSBDSignals(), Verdict()],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_rows_were_measured_of_before_they_changed_are_others_now(method: Purifier | Scanner) -> None:
    assert recipe_of(method)["revision"] >= 1


@pytest.mark.parametrize("method", [NPD(), SAU()], ids=lambda method: type(method).__name__)
def test_methods_whose_rows_are_kept_are_what_they_were(method: Purifier) -> None:
    assert "revision" not in recipe_of(method)


@pytest.mark.slow
def test_rows_that_are_committed_are_cells_of_their_grid(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    grid = Path("benchmarks/grids/purify-small.yaml")
    rows = [json.loads(line) for line in Path("benchmarks/results/purify-small.jsonl").read_text().splitlines()]
    assert rows
    assert {row["key"] for row in rows} <= {cell.key for cell in read_grid(grid)}
