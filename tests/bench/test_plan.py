"""How long a grid will take is judged by the cells that are most like its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.bench.noop import Noop, cells, repair, victim
from tests.bench.records import done
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.plan import Step, plan, seconds_until_done, total_seconds


def like(number: int, data: str, method: str) -> Cell:
    """Return a repair with these labels, which alone decide what it is like."""
    one = repair(victim(number), number, method=method)
    return Cell(
        domain=one.domain,
        kind=one.kind,
        labels={**one.labels, "data": data},
        recipe=one.recipe,
        work=None,
        needs=one.needs,
    )


def expected(cell: Cell, *durations: tuple[Cell, float]) -> float | None:
    (step,) = plan([cell], [done(other, seconds) for other, seconds in durations])
    assert not step.cached
    return step.seconds


@pytest.mark.parametrize(("seconds", "median"), [([7], 7), ([1, 100, 5], 5), ([1, 100], 50.5), ([1, 2, 4, 1000], 3)])
def test_a_cell_takes_as_long_as_the_median_of_those_that_are_like_it(seconds: list[float], median: float) -> None:
    others = [(like(number + 1, "a", "FT"), taken) for number, taken in enumerate(seconds)]
    assert expected(like(0, "a", "FT"), *others) == median


def test_the_cells_that_are_more_alike_are_the_ones_that_count() -> None:
    same, other_data = (like(1, "a", "FT"), 10.0), [(like(number, "b", "FT"), 1000.0) for number in range(2, 9)]
    assert expected(like(0, "a", "FT"), same, *other_data) == 10
    assert expected(like(0, "c", "FT"), same, *other_data) == 1000, "all that share the method"


def test_another_method_and_another_kind_say_nothing() -> None:
    others = ((like(1, "a", "SAU"), 10.0), (victim(2), 20.0))
    assert expected(like(0, "a", "FT"), *others) is None
    assert expected(victim(0), *others) == 20


def test_a_failed_cell_is_neither_done_nor_a_measure() -> None:
    cell = like(0, "a", "FT")
    (step,) = plan([cell], [done(cell, 1.0, error="out of memory"), done(like(1, "a", "FT"), 9.0)])
    assert step == Step(cell, cached=False, seconds=9.0)
    assert plan([cell], [done(like(1, "a", "FT"), 9.0, error="no")]) == [Step(cell, cached=False, seconds=None)]


def test_cells_that_are_done_cost_nothing_and_keep_their_places() -> None:
    grid = cells(3)
    steps = plan(grid, [done(grid[0], 60.0), done(grid[1], 5.0), done(grid[3], 7.0)])
    assert [step.cell for step in steps] == grid
    assert [step.cached for step in steps] == [True, True, False, True, False, False]
    assert [step.seconds for step in steps] == [0, 0, 60, 0, 60, 6]
    assert total_seconds(steps) == (126, 0)


def test_what_is_unknown_is_counted_and_not_guessed() -> None:
    grid = cells(3)
    assert total_seconds(plan(grid, [])) == (0, 6)
    assert total_seconds(plan(grid, [done(grid[0], 60.0)])) == (120, 3)
    assert total_seconds([]) == (0, 0)


class Unlike(Noop):
    """A domain that does not know which cells are alike."""

    alike = ()


class InLists(Noop):
    """A domain that says it in lists."""

    alike = [["data"], ["kind"]]  # noqa: RUF012 - the type allows it


@pytest.mark.parametrize(("domain", "seconds"), [(Noop, 9.0), (Unlike, None), (InLists, 9.0)])
def test_every_domain_says_itself_which_cells_are_alike(domain: type[Noop], seconds: float | None) -> None:
    labels = like(0, "a", "FT").labels
    before, now = (
        Cell(domain=domain(), kind="purify", labels=labels, recipe={"number": number}, work=None) for number in (8, 9)
    )
    assert [step.seconds for step in plan([now], [done(before, 9.0)])] == [seconds]


def test_what_another_domain_did_says_nothing() -> None:
    labels = like(0, "a", "FT").labels
    other = Cell(domain=InLists(), kind="purify", labels=labels, recipe={"number": 9}, work=None)
    assert [step.seconds for step in plan([like(1, "a", "FT")], [done(other, 9.0)])] == [None]


def test_the_clock_of_a_resumed_cell_is_not_believed() -> None:
    resumed = replace(done(like(0, "a", "FT"), 1.0), metrics={"resumed": 1.0})
    steps = plan([like(2, "a", "FT")], [resumed, done(like(1, "a", "FT"), 9.0)])
    assert [step.seconds for step in steps] == [9]


def test_the_time_with_several_cells_at_once_is_that_of_the_benchs_own_order() -> None:
    """Two victims of 10 and 20 s, each with two repairs of 5 s."""
    first, second = victim(0), victim(1)
    repairs = [repair(needs, place, method=f"M{place}") for needs in (first, second) for place in (0, 1)]
    timed = [(first, 10.0), (second, 20.0), *((one, 5.0) for one in repairs)]
    assert seconds_until_done(timed, 1) == 50
    assert seconds_until_done(timed, 2) == 25, "the first one's repairs beside the second victim, its own side by side"
    assert seconds_until_done(timed, 100) == 25, "the longest chain"
    assert seconds_until_done(timed[2:4], 2) == 5, "what they need is done already"
    assert seconds_until_done(timed[2:4], 2, overhead=1.0) == 7, "the second is handed out after the first"
    assert seconds_until_done([], 3) == 0
