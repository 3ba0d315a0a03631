"""Whatever finishes or fails in whatever order, every cell is done once or reported lost, and none before its time."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bench.noop import cells, repair, victim
from unbackdoor.bench.cell import Cell
from unbackdoor.bench.queue import Queue

MANY = settings(max_examples=300, deadline=None, derandomize=True)


@st.composite
def grids(draw: st.DrawFn) -> list[Cell]:
    """Return cells, each of which needs an earlier one or none."""
    grid: list[Cell] = []
    for number in range(draw(st.integers(0, 10))):
        place = draw(st.integers(-1, number - 1))
        grid.append(victim(number) if place < 0 else repair(grid[place], number))
    return grid


@MANY
@given(grids(), st.data())
def test_every_cell_is_settled_once_or_reported_lost_and_never_before_its_time(
    grid: list[Cell], data: st.DataObject
) -> None:
    before = {cell.key for cell in grid if data.draw(st.booleans(), label="done before")}
    queue = Queue(grid, before)
    done, running = set(before), list[Cell]()
    settled, lost = Counter[str](), Counter[str]()
    returns = data.draw(st.integers(0, 5), label="cells that are put back")
    while queue or running:
        actions = [
            *["take"] * bool(queue),
            *["finish", "fail"] * bool(running),
            *["return"] * bool(running and returns),
        ]
        action = data.draw(st.sampled_from(actions))
        if action == "take":
            cell = queue.take()
            assert cell.key not in before
            assert cell.needs is None or cell.needs.key in done
            running.append(cell)
            continue
        cell = running.pop(data.draw(st.integers(0, len(running) - 1)))
        if action == "return":
            returns -= 1
            queue.put_back(cell)
            assert queue.take() is cell
            queue.put_back(cell)
            continue
        settled[cell.key] += 1
        if action == "finish":
            done.add(cell.key)
            queue.finish(cell)
        else:
            lost.update(one.key for one in queue.fail(cell))
    assert settled + lost == Counter(cell.key for cell in grid if cell.key not in before)
    assert not settled.keys() & lost.keys()
    for cell in grid:
        if cell.key in lost:
            assert cell.needs is not None
            assert cell.needs.key not in done, "only what can no longer be done is given up"


@MANY
@given(grids())
def test_what_a_finished_cell_was_needed_for_comes_next_and_in_its_order(grid: list[Cell]) -> None:
    queue = Queue(grid, ())
    while queue:
        cell = queue.take()
        queue.finish(cell)
        waited = [one for one in grid if one.needs is cell]
        assert [queue.take() for _ in waited] == waited
        for one in reversed(waited):
            queue.put_back(one)


def test_a_victims_results_come_before_the_next_victim() -> None:
    grid = cells(3)
    queue, order = Queue(grid, ()), list[Cell]()
    while queue:
        order.append(queue.take())
        queue.finish(order[-1])
    assert order == grid


def test_cells_come_in_the_grids_order_while_none_is_finished() -> None:
    grid = cells(3)
    queue = Queue(grid, ())
    assert [queue.take() for _ in range(3)] == grid[::2]
    assert not queue, "the repairs wait"
    queue.finish(grid[4])
    queue.finish(grid[0])
    assert [queue.take() for _ in range(2)] == [grid[1], grid[5]]


def test_what_waits_for_a_cell_that_is_done_already_can_be_done_at_once() -> None:
    grid = cells(2)
    queue = Queue(grid, {grid[0].key, grid[3].key})
    assert [queue.take() for _ in range(2)] == [grid[1], grid[2]]
    queue.finish(grid[2])
    assert not queue, "its repair was done before"


def test_a_failure_takes_all_that_needs_it_with_it_and_nothing_else() -> None:
    first, other = victim(0), victim(1)
    second = repair(first, 2)
    third, fourth = repair(second, 3), repair(other, 4)
    queue = Queue([first, second, third, other, fourth], ())
    assert queue.take() is first
    assert queue.fail(first) == [second, third]
    assert queue.take() is other
    queue.finish(other)
    assert queue.take() is fourth
    assert queue.fail(fourth) == []
    assert not queue


def test_a_grid_that_is_all_done_has_nothing_to_do() -> None:
    grid = cells(2)
    assert not Queue(grid, {cell.key for cell in grid})
    assert not Queue([], ())
