"""The program that measures MESA: its rows, what it does not do again, and its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.planted import pictures
from unbackdoor.purify.retraining import Retraining
from unbackdoor.scan import MESA
from unbackdoor.scan import mesa as scan_module
from unbackdoor.training import Runtime


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import mesa

        yield mesa


@pytest.fixture
def bench(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench on the smallest data, with the shortest schedules."""
    monkeypatch.setattr(program, "FINE_TUNING", program.Recipe(epochs=1, low_resolution=0.0))
    monkeypatch.setattr(scan_module, "SCREENING_STEPS", 2)
    monkeypatch.setattr(program, "SPEED_STEPS", 1)
    monkeypatch.setattr(program, "SPEED_TURNS", 2)
    made = program.Bench(
        tmp_path,
        tmp_path / "work",
        4,
        program.How(
            sweep=MESA(steps=2, batch_size=4, hidden=4, threshold=0.0, finalists=8),
            retraining=Retraining(epochs=1, batch_size=8, stamped=0.5),
            epochs=1,
        ),
        program.Rows(tmp_path / "rows.jsonl"),
        Runtime(device="cpu", precision="fp32", threads=1),
    )
    made.sets = {"cifar10": (pictures(80, 1), pictures(40, 2))}
    return made


def test_victims_are_spread_over_the_patterns_and_of_random_colours_and_targets(program: ModuleType) -> None:
    found = list(program.victims(12, 4, 3))
    numbers = [one.number for one in found if one.kind == "black and white"]
    assert len(set(numbers)) == 12
    assert (numbers[0], numbers[-1]) == (0, 50)
    assert [one.number for one in program.victims(51, 0, 0)] == list(range(51))
    targets = [one.target for one in found if one.data == "gtsrb"]
    assert len(targets) == 3
    assert all(0 <= target < 43 for target in targets)
    assert {one.patch(3).shape for one in found} == {(3, 3, 3)}


def test_poison_is_a_share_of_each_batch_with_the_label_of_the_attacker(
    program: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "POISONED", 0.3)
    hook = program.Poisoning(torch.full((3, 3, 3), 1.0), 6)
    images, labels = torch.zeros(200, 3, 12, 12), torch.zeros(200, dtype=torch.int64)
    batch = program.Batch(images=images, targets=labels, rows=torch.arange(200))
    found = hook.batch(torch.nn.Identity(), batch, torch.Generator().manual_seed(0))
    poisoned = (found.images != 0).flatten(1).any(1)
    assert 35 < int(poisoned.sum()) < 85
    assert torch.equal(found.targets, torch.where(poisoned, 6, 0))
    assert found.images[poisoned].flatten(1).sum(1).tolist() == [27.0] * int(poisoned.sum())
    assert float(images.max()) == 0


@pytest.mark.slow
def test_every_defence_has_a_row_and_no_row_is_done_twice(
    program: ModuleType, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SUPPORT", 80)
    monkeypatch.setattr(program, "SUPPORTS", (40,))
    monkeypatch.setattr(program, "WRONG_SIZES", ((2, 4),))
    setting = program.Setting
    monkeypatch.setattr(program, "Setting", lambda support=80, sizes=(3,): setting(support=support, sizes=sizes))
    wanted, table = list(program.victims(1, 1, 0)), tmp_path / "table.md"
    program.do(bench, wanted, 2, 1, table)
    rows = bench.rows.read()
    # Two seeds of each defence, but there is one way to do without.
    assert len(rows) == 2 * (2 * len(program.DEFENSES) - 1) + 2
    assert {row["defense"] for row in rows} == set(program.DEFENSES)
    assert all(0 <= row["asr"]["value"] <= 1 for row in rows)
    studied = [row for row in rows if (row["support"], tuple(row["sizes"])) != (80, (3,))]
    assert [(row["support"], row["sizes"], row["size"] in row["sizes"]) for row in studied] == [
        (40, [3], True),
        (80, [2, 4], True),
    ]
    pages = sorted(path.name for path in tmp_path.glob("*.html"))
    assert pages == ["table-cifar10-black-and-white-0.html", "table-cifar10-random-colors-0.html"]
    assert "the original trigger" in (tmp_path / pages[0]).read_text()

    def never(*_: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(program.Bench, "defend", never)
    program.do(bench, wanted, 2, 1, table)
    assert len(bench.rows.read()) == len(rows)
    text = table.read_text()
    assert "| cifar10 | black and white | 4 | ensemble | 1 | 2 |" in text
    assert "| cifar10, black and white 0 | 4 | " in text.split("## Trigger by trigger")[1]
    assert "| cifar10, black and white 0 | 4 | 40 | 3 | 3 |" in text


@pytest.mark.parametrize(("suspected", "copied"), [([0], True), ([1], False), ([0, 1], False)])
def test_told_the_target_the_ensemble_is_not_made_again_where_the_sweep_named_it_alone(
    suspected: list[int], copied: bool, program: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (victim,), made = program.victims(1, 0, 0), []
    model = program.new_network(program.partial(program.ResNet18, width=4), bench.sets["cifar10"][0], bench.runtime)

    def defend(name: str, *_: object) -> tuple[object, dict[str, Any]]:
        made.append(name)
        return model, {"suspected": suspected}

    monkeypatch.setattr(bench, "victim", lambda _: model)
    monkeypatch.setattr(bench, "defend", defend)
    known = program.KNOWN[1]
    bench.run(victim, program.Setting(support=80), ("ensemble", known))
    assert made == (["ensemble"] if copied else ["ensemble", known])
    one, other = bench.rows.read()
    assert [row["defense"] for row in (one, other)] == ["ensemble", known]
    assert other.get("copied", False) is copied
    assert one["asr"] == other["asr"]
    assert one["key"] != other["key"]
    bench.run(victim, program.Setting(support=80), ("ensemble", known))
    assert len(bench.rows.read()) == 2


def test_speeds_are_of_the_same_steps_in_turns(
    program: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.sweep = MESA(steps=2, batch_size=4, hidden=4, finalists=2)
    monkeypatch.setattr(program, "SUPPORT", 80)
    bench.speed(next(program.victims(1, 0, 0)))
    (row,) = bench.rows.read()
    assert (row["steps"], row["sub_models"]) == (1, 6)
    assert [len(row["seconds_of"][side]) for side in ("ours", "naive")] == [2, 2]
    assert "## Batched training" in program.written([row], bench.how)


@pytest.fixture
def row(program: ModuleType) -> Callable[..., dict[str, Any]]:
    """What makes a row of a defence."""

    def made(defense: str, number: int, asr: float, repeat: int = 0, **more: Any) -> dict[str, Any]:
        machine = {"device": "cpu", "threads": "2", "torch": "2"}
        what = {"data": "cifar10", "kind": "black and white", "number": number, "target": 0, "width": 16}
        setting = {"support": program.SUPPORT, "sizes": [3], "defense": defense, "repeat": repeat}
        rates = {"asr": {"value": asr}, "acc": {"value": 0.9 - asr / 100}}
        key = {"key": f"{defense} {number} {repeat}"}
        return {**machine, **what, **setting, **key, **rates, **program.How().to_json(), **more}

    return made


def cells(text: str) -> list[list[str]]:
    """Return the tables' lines."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


def test_means_worst_and_what_the_paper_says(program: ModuleType, row: Callable[..., dict[str, Any]]) -> None:
    rows = [row("none", 0, 0.98), row("none", 1, 0.9)]
    rows += [row("ensemble", 0, 0.02, suspected=[0], size=3), row("ensemble", 1, 0.08, suspected=[4], size=3)]
    found = {line[3]: line[4:] for line in cells(program.written(rows, program.How())) if len(line) == 13}
    assert found["none"] == ["2", "2", "94.00", "90.00", "89.06", "0.00", "", "98.7", ""]
    assert found["ensemble"] == ["2", "2", "5.00", "8.00", "89.95", "-0.89", "1 of 2", "3.6", "8.2"]


def test_several_seeds_of_a_trigger_are_one_mean_and_the_triggers_are_compared_by_it(
    program: ModuleType, row: Callable[..., dict[str, Any]]
) -> None:
    """On trigger 0 the ensemble is better by the mean, and worse with the first seed."""
    rows = [row("none", 0, 0.98), row("none", 4, 0.9)]
    for number, ours, theirs in ((0, (0.2, 0.04), (0.1, 0.5)), (4, (0.3, 0.1), (0.1, 0.1))):
        for repeat in range(2):
            rows.append(row("ensemble", number, ours[repeat], repeat, suspected=[0], size=3))
            rows.append(row("pixel space", number, theirs[repeat], repeat))
    text = program.written(rows, program.How())
    found = {line[3]: line[4:8] for line in cells(text) if len(line) == 13}
    assert found["ensemble"] == ["2", "4", "16.00", "20.00"]
    assert found["pixel space"] == ["2", "4", "20.00", "30.00"]
    assert "cifar10, black and white, width 16: ensemble below pixel space on 1 of 2" in text
    each = {line[0]: line[1:] for line in cells(text) if len(line) == 8}
    assert each["cifar10, black and white 0"] == ["16", "98.00", "", "30.00 ± 28.28", "12.00 ± 11.31", "", ""]
    assert each["cifar10, black and white 4"] == ["16", "90.00", "", "10.00 ± 0.00", "20.00 ± 14.14", "", ""]


def test_rows_of_other_options_are_not_mixed_in(program: ModuleType, row: Callable[..., dict[str, Any]]) -> None:
    other = program.How(retraining=Retraining(stamped=0.1))
    rows = [row("none", 0, 0.98), row("ensemble", 0, 0.02, suspected=[0], size=3)]
    rows.append(row("ensemble", 0, 0.9, suspected=[], size=3, **other.to_json()))
    for how, expected in ((program.How(), "2.00"), (other, "90.00")):
        found = {line[3]: line[4:7] for line in cells(program.written(rows, how)) if len(line) == 13}
        assert found["none"][2] == "98.00", "without a defence its options do not matter"
        assert found["ensemble"] == ["1", "1", expected]
    text = program.written(rows, other)
    assert "10 % of the images stamped in the repairs" in text
    assert "98.00" not in program.written(rows, program.How(epochs=3))


def test_the_baseline_has_a_row_with_the_target_told_too(program: ModuleType, bench: Any) -> None:
    """With a threshold that no patch reaches, and a patch all the same."""
    from unbackdoor.purify import PixelSpace

    model, clean = bench.victim(next(program.victims(1, 0, 0))), bench.sets["cifar10"][0]
    victim = program.Victim(data="cifar10", kind="black and white", number=0, target=5)
    searched: list[int | None] = []
    find = PixelSpace.find

    def seen(self: PixelSpace, *given: Any) -> dict[str, Any]:
        searched.append(given[3])
        return find(dataclasses.replace(self, steps=1, threshold=1.0), *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PixelSpace, "find", seen)
        left, told = bench.defend("pixel space", model, clean, victim, program.Setting(), 0)
        assert left is model
        assert told["suspected"] == []
        left, told = bench.defend("pixel space, known target", model, clean, victim, program.Setting(), 0)
    assert left is not model
    assert told["suspected"] == [5]
    assert searched == [None, 5]


@pytest.mark.slow
def test_seeds_differ_in_the_retraining_and_share_the_sweep(
    program: ModuleType, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "SUPPORT", 80)
    defenses = ("none", "ensemble, known target", "pixel space")
    sweeps, seeds = [], []
    scan, fit = MESA.scan, Retraining.fit
    monkeypatch.setattr(MESA, "scan", lambda *given: sweeps.append(given[3].seed) or scan(*given))
    monkeypatch.setattr(Retraining, "fit", lambda *given: seeds.append(given[4].seed) or fit(*given))
    bench.run(next(program.victims(1, 0, 0)), program.Setting(support=80), defenses, 3)
    assert [(row["defense"], row["repeat"]) for row in bench.rows.read()] == [
        ("none", 0),
        *(("ensemble, known target", repeat) for repeat in range(3)),
        *(("pixel space", repeat) for repeat in range(3)),
    ]
    assert sweeps == [0]
    assert seeds[:3] == [0, 1, 2]
