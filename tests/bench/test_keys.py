"""What a cell is known by stays the same while its result does, and changes when that does."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench.noop import repair, victim
from unbackdoor.attacks import LIRA, BadNets
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.victims import recipe_of
from unbackdoor.purify import ANP, DBR, FT, IBAU, MCR, NPD, RNP, SAU, TSBD, Purifier
from unbackdoor.scan import Scanner, TSBDSignals, Verdict
from unbackdoor.secure import DBD, DST
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


@pytest.mark.parametrize("method", [DBR(), DST()], ids=lambda method: type(method).__name__)
def test_what_goes_by_fct_and_changed_itself_is_another_method_with_either_change(method: DBR | DST) -> None:
    """D-BR had no weight decay, and D-ST jittered the colours of every view."""
    assert recipe_of(method)["revision"] > FCT.revision


@pytest.mark.parametrize("method", [DBD(), LIRA()], ids=lambda method: type(method).__name__)
def test_what_was_trained_on_other_images_before_is_another_method(method: DBD | LIRA) -> None:
    """DBD jittered the colours of every view, and the noise of LIRA was not normalised."""
    assert recipe_of(method)["revision"] >= 1


@pytest.mark.parametrize(
    "method",
    [ANP(), IBAU(), MCR(), RNP(), TSBD(), TSBDSignals(), Verdict()],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_rows_were_measured_of_before_they_changed_are_others_now(method: Purifier | Scanner) -> None:
    assert recipe_of(method)["revision"] >= 1


@pytest.mark.parametrize("method", [NPD(), SAU()], ids=lambda method: type(method).__name__)
def test_methods_whose_rows_are_kept_are_what_they_were(method: Purifier) -> None:
    assert "revision" not in recipe_of(method)


def _purify_small() -> list[str]:
    return [json.loads(line)["key"] for line in Path("benchmarks/results/purify-small.jsonl").read_text().splitlines()]


def _small() -> list[str]:
    with Path("benchmarks/results/small/cells.csv").open(newline="") as file:
        # Its page says of which commit it is: before WaNet warped images before they are cropped.
        return [row["key"] for row in csv.DictReader(file) if row["attack"] != "WaNet"]


@pytest.mark.slow
@pytest.mark.parametrize(("grid", "keys"), [("purify-small", _purify_small), ("small", _small)])
def test_rows_that_are_committed_are_cells_of_their_grid(
    grid: str, keys: Callable[[], list[str]], shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    rows = keys()
    assert rows
    assert set(rows) <= {cell.key for cell in read_grid(Path(f"benchmarks/grids/{grid}.yaml"))}
