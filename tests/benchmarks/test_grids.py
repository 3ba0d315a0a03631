"""The programs that do the cells of a grid: what is done once, what the tables tell, and what the speeds mean."""

from __future__ import annotations

import importlib
import inspect
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from unbackdoor.bench import axes
from unbackdoor.bench.axes import Source
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.worker import CellOutcome
from unbackdoor.located import Located

Load = Callable[[str], ModuleType]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """The programs, which are run as files and find their neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module


MACHINE = {"device": "cpu", "threads": "2", "torch": "2"}
COST = {"seconds": 60.0, "cpu_seconds": 110.0, "peak_mb": 500.0}


def labels(method: str | None, **changes: Any) -> dict[str, Any]:
    common = {
        "data": "cifar10",
        "network": "w",
        "attack": "BadNets",
        "poison_rate": 0.1,
        "precision": "bf16",
        "seed": 0,
    }
    return {**common, "method": method, "training": None, "clean_size": None, "budget": None, **changes}


def shares(**values: float) -> dict[str, float]:
    return {f"{name}{end}": value for name, value in values.items() for end in ("", "_low", "_high")}


def sifting(method: str, auroc: float | None, fpr: float = 0.05, **changes: Any) -> dict[str, Any]:
    clean = {"attack": "None", "poison_rate": None} if auroc is None else {}
    found = {} if auroc is None else shares(auroc=auroc, tpr_at_1=auroc / 2, tpr=0.5)
    row = {"kind": "sift", **labels(method, **clean), **shares(fpr=fpr, held=fpr), **found, **COST, **MACHINE}
    return {**row, "before": {"peak_mb": 900.0}, **changes}


def tables(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_table_of_sifters_has_aims_means_over_attacks_and_every_cell(
    program: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        sifting("FCT", 1.0, seed=0),
        sifting("FCT", 0.9, seed=1),
        sifting("FCT", 0.75, attack="SIG", poison_rate=0.05, seed=0),
        sifting("FCT", 0.75, attack="SIG", poison_rate=0.05, seed=1),
        sifting("FCT", 0.5, poison_rate=0.01),
        sifting("FCT", None, fpr=0.0625),
        sifting("Consensus", None, fpr=0.0, seed=1),
        sifting("Consensus", 0.99, learning_seconds=30.0, seconds=800.0, cpu_seconds=1500.0, seed=1),
        # Something else ran beside it.
        sifting("Consensus", 0.99, seconds=8000.0, poison_rate=0.01, tpr=1.0, attack="SIG", seed=1),
        sifting("Consensus", 0.99, fpr=0.001, attack="SIG", poison_rate=0.05, tpr=0.9, seed=1),
        sifting("Consensus", 0.99, fpr=0.9, poison_rate=0.01, tpr=1.0, seed=1),
        {**labels("SCAn"), "kind": "sift", "error": "too few", **MACHINE},
    ]
    sifters = program("sifters")
    monkeypatch.setattr(sifters, "ATTACKS", 2)
    monkeypatch.setattr(sifters, "SEEDS", 1)
    monkeypatch.setattr(sifters, "LOOKED_AT", {"Consensus": (0,)})
    text = sifters.written("g.yaml", 13, rows)
    lines = tables(text)
    assert "12 of 13 cells" in text
    assert ["FCT", "AUROC, mean over attacks", "95.00", "85.00", "no"] in lines, "1 % poison does not count"
    assert ["Consensus", "AUROC, mean over attacks", "98.00", "99.00", "yes"] in lines
    assert ["Consensus", "TPR at FPR 1 %, mean over attacks", "90.00", "49.50", "no"] in lines
    rule = "of the rows that it holds poisoned, mean over attacks"
    assert ["Consensus", f"TPR {rule}", "90.00", "70.00", "no"] in lines, "a ranking is not what users get"
    assert ["Consensus", f"FPR {rule}", "1.00", "2.55", "no"] in lines, "1 % poison does not count here either"
    assert ["Consensus", "rows of clean data held poisoned, mean over seeds", "1.00", "0.00", "yes"] in lines
    assert ["Consensus", "minutes, the longest of undisturbed ones (BadNets)", "12", "13.3", "no"] in lines
    means = [line for line in lines if len(line) == 11 and line[0] == "FCT"]
    assert [line[1:6] for line in means] == [
        ["2", "2", "85.00", "75.00 (SIG)", "42.50"],
        ["1", "1", "50.00", "50.00 (BadNets)", "25.00"],
    ]
    assert means[0][8] == "6.25"
    consensus, _ = [line for line in lines if len(line) == 11 and line[0] == "Consensus"]
    assert consensus[-1] == "900", "learning took more memory than sifting"
    assert ["FCT", "95.00 (90.00)", "75.00 (75.00)"] in lines
    assert sum(len(line) == 12 for line in lines) == 2 + 11, "a head and a rule, and every cell that was done"
    assert "- SCAn on BadNets, seed 0: too few." in text


def test_thresholds_are_not_judged_by_the_seed_with_which_they_were_chosen(
    program: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    sifters = program("sifters")

    def aim(*rows: dict[str, Any]) -> list[str]:
        lines = tables(sifters.written("g.yaml", 9, rows))
        (line,) = [line for line in lines if line[1:2] == ["AUROC, mean over attacks"]]
        return line[3:]

    assert aim(sifting("FCT", 1.0)) == ["100.00", "not all measured"]
    monkeypatch.setattr(sifters, "ATTACKS", 1)
    monkeypatch.setattr(sifters, "SEEDS", 1)
    monkeypatch.setattr(sifters, "LOOKED_AT", {"Consensus": (0,)})
    both = (sifting("Consensus", 1.0), sifting("Consensus", 0.5, seed=1))
    assert aim(both[0]) == ["100.00", "not judged"]
    assert aim(*both) == ["50.00", "no"]
    assert aim(sifting("FCT", 1.0), sifting("FCT", 1.0, seed=1)) == ["100.00", "yes"], "nothing was chosen here"


def training(kind: str, method: str | None, acc: float, asr: float | None, **changes: Any) -> dict[str, Any]:
    clean = {"attack": "None", "poison_rate": None} if asr is None else {}
    found = shares(acc=acc) if asr is None else shares(acc=acc, asr=asr, ra=0.5)
    return {"kind": kind, **labels(method, **clean), **found, "rounds": 3.0, **COST, **MACHINE, **changes}


def test_the_table_of_trainers_sets_each_beside_the_victim_of_its_attack_and_seed(
    program: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        training("victim", None, 0.9, 1.0, training="default"),
        training("victim", None, 0.8, 0.9, training="default", seed=1),
        training("victim", None, 0.85, None, training="default"),
        training("secure", "DST", 0.85, 0.02, acc_counted=0.84),
        training("secure", "DST", 0.8, None),
        training("secure", "TrapAndReplace", 0.7, 0.4, seed=1, mse_clean=0.0123, mse_triggered=0.02),
        training("purify", "DBR", 0.89, 0.01, training="default", der=0.99),
    ]
    secure = program("secure")
    assert ["DBR", "ASR, mean over attacks", "2", "1.00", "not all measured"] in tables(secure.written("g", 7, rows))
    told = {**rows[-1], "before": {"acc": 0.92, "asr": 1.0}}
    for some in ([told], [*rows[:-1], told]):
        aim = ["DBR", "ACC fell by, mean over attacks", "1.5", "3.00", "not all measured"]
        assert aim in tables(secure.written("g", 7, some)), "a repair's own victim counts, whether it has a row or not"
    monkeypatch.setattr(secure, "ATTACKS", 1)
    monkeypatch.setattr(secure, "SEEDS", 1)
    paper = [training("secure", "DST", 0.9, 0.02, attack=attack, acc_counted=0.91) for attack in ("BadNets", "Blended")]
    for told, some in (("yes", paper), ("not all measured", paper[:1])):
        table = tables(secure.written("d-st-paper.yaml", 7, some))
        assert ["DST", "ACC counted", "91.66", "91.00", told] in table
        assert ["DST", "ASR", "1.21", "2.00", told] in table
    text = secure.written("g.yaml", 7, rows)
    lines = tables(text)
    assert ["DBR", "ASR, mean over attacks", "2", "1.00", "yes"] in lines
    assert ["DBR", "ACC fell by, mean over attacks", "1.5", "1.00", "yes"] in lines
    assert not [line for line in lines if len(line) == 5 and line[0] == "TrapAndReplace"], "it has other attacks"
    means = {line[0]: line for line in lines if len(line) == 15}
    assert means["no defence"][3:7] == ["85.00", "", "", "95.00"]
    assert means["DST"][3:7] == ["85.00", "84.00", "5.00", "2.00"]
    assert means["DST"][9] == "96.50", "(1 + 0.98 - 0.05) / 2"
    assert means["DST"][12] == "80.00", "on clean data"
    assert means["TrapAndReplace"][5] == "10.00", "against the victim of its own seed"
    assert means["TrapAndReplace"][10:12] == ["0.01230", "0.02000"]
    (cell,) = [line for line in lines if len(line) == 14 and line[1] == "DST" and line[0] == "BadNets"]
    assert cell[4] == "84.00"
    assert sum(len(line) == 14 for line in lines) == 2 + 7


def repaired(attack: str, method: str, asr: float, **changes: Any) -> dict[str, Any]:
    shares_after = shares(acc=0.85, asr=asr, ra=0.5)
    beside = {"before": {"acc": 0.9, "asr": 1.0}, "der": (2 - asr - 0.05) / 2, "clean_size": 2500, "rounds": 3.0}
    return {"kind": "purify", **labels(method, attack=attack), **shares_after, **beside, **COST, **MACHINE, **changes}


def test_the_table_of_purifiers_tells_the_poison_and_the_time_of_all(program: Load) -> None:
    resumed = {name: value for name, value in repaired("SIG", "NPD", 0.5).items() if "seconds" not in name}
    rows = [repaired("BadNets", "SAU", 0.1), {**resumed, "poison_rate": 0.05}, repaired("LF", "SAU", 0.3, seconds=90.0)]
    text = program("purifiers").written("g.yaml", 5, rows)
    assert "Poisoned of all training images: 10 % (BadNets, LF); 5 % (SIG)." in text
    assert "2 repairs took 2.5 minutes in all, 1 more of unknown length not counted." in text
    means = {line[0]: line for line in tables(text) if len(line) == 13}
    assert means["SAU (without SIG)"][5:8] == ["5.00", "20.00", "30.00 (LF)"]
    assert means["NPD (without BadNets, LF)"][11] == ""
    of_others = [repaired("SIG", "NPD", 0.5, training=f"given: SIG-{seed}") for seed in (1, 2)]
    lines = tables(program("purifiers").written("g.yaml", 5, of_others))
    assert [line[0] for line in lines if len(line) == 12] == ["victim", "---", "SIG-1", "SIG-2"], "which victim"
    assert "in sight" not in text
    chosen = [*rows, repaired("LF", "FTSAM learning_rate=0.04", 0.0)]
    assert "Chosen in sight of test data: FTSAM learning_rate=0.04:" in program("purifiers").written("g", 5, chosen)


GRID = """
data: digits
networks: {name: PreActResNet18, width: 4}
attacks: BadNets
secure: {name: ABL, isolation_epochs: 1, epochs: 1, unlearning_epochs: 1}
sift: {name: LossIsolation, epochs: 1}
purify: {name: FT, epochs: 1}
recipe: {epochs: 1, learning_rate: 0.05, ema: 0}
clean_sizes: 100
"""


def test_what_several_cells_need_is_done_once_and_kept(
    program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = program("grid_cells")
    monkeypatch.setattr(module, "HERE", tmp_path)
    (tmp_path / "tiny.yaml").write_text(GRID)
    done: list[str] = []

    def instead(self: Any, cell: Any, given: dict[str, bytes]) -> CellOutcome:
        done.append(cell.kind)
        if cell.kind == "purify":
            raise module.Refused(CellOutcome(started=0.0, machine=MACHINE, error="it cannot be"))
        assert cell.needs is None or given == {"made": cell.needs.kind.encode()}
        return CellOutcome(metrics={"acc": 0.5}, files={"made": cell.kind.encode()}, started=0.0, machine=MACHINE)

    monkeypatch.setattr(module.GridCells, "_perform", instead)

    def cells() -> Any:
        kinds = ["victim", "secure", "sift", "purify"]
        return module.GridCells(tmp_path / "tiny.yaml", kinds, lambda *told: repr(told[:2]), tmp_path / "w", "cpu", 1)

    first = cells()
    assert [cell.kind for cell in first.left(["LossIsolation epochs=1", "FT"])] == ["purify", "sift"]
    for cell in first.left():
        first.run(cell)
    assert done == ["victim", "purify", "poison", "sift", "secure"]
    rows = first.rows.read()
    assert [row["kind"] for row in rows] == ["victim", "purify", "sift", "secure"]
    assert rows[1]["error"] == "it cannot be"
    assert rows[2]["before"] == {"acc": 0.5}
    assert rows[1]["torch"] == "2"
    first.write()
    assert first.table.read_text() == "('tiny.yaml', 4)"
    assert cells().left() == []
    first.rows.path.unlink()
    again = cells()
    again.run(again.left()[0])
    assert done[5:] == [], "the victim was kept"


class Here:
    """Does what is submitted at once, where it is submitted."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return SimpleNamespace(result=lambda: work(*arguments))


def test_after_so_many_minutes_the_cell_in_work_is_interrupted_and_left_for_the_next_time(
    program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = program("grid_cells")
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "ProcessPoolExecutor", Here)
    (tmp_path / "tiny.yaml").write_text(GRID)
    slow = "secure"

    def instead(cell: Any, *_: Any) -> CellOutcome:
        if cell.kind == slow:
            time.sleep(30)
        return CellOutcome(metrics={"acc": 0.5}, files={"made": b""}, started=0.0, machine=MACHINE)

    monkeypatch.setattr(module, "perform", instead)

    def cells(minutes: float | None) -> Any:
        kinds = ["victim", "secure", "sift"]
        grid = tmp_path / "tiny.yaml"
        return module.GridCells(grid, kinds, lambda *told: repr(told[:2]), tmp_path / "w", "cpu", 1, minutes)

    start = time.monotonic()
    first = cells(1 / 60)
    module.do_all(first)
    assert time.monotonic() - start < 20
    assert [row["kind"] for row in first.rows.read()] == ["victim", "sift"]
    assert [cell.kind for cell in first.left()] == ["secure"]
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    slow = ""
    again = cells(None)
    module.do_all(again)
    assert again.left() == []
    assert isinstance(pickle.loads(pickle.dumps(module.TimeIsUp())), module.TimeIsUp), "it crosses processes"


DATA = {"cifar10": (10, 32, 50_000), "gtsrb": (43, 32, 39_209), "tiny_imagenet": (200, 64, 10_000)}


@pytest.mark.parametrize("grid", ["full", "gtsrb", "tiny", "vgg"])
def test_the_grids_of_other_data_and_networks_can_be_done(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the images is read: methods, options and networks are checked."""

    def source(found: Located) -> Source:
        name = Path(found.text()).name
        classes, side, rows = DATA[name]
        return Source(name, name, ("0", "1"), tuple(map(str, range(classes))), (3, side, side), rows)

    monkeypatch.setattr(axes, "_source", source)
    cells = read_grid(Path(__file__).parents[2] / "benchmarks" / "grids" / f"purify-{grid}.yaml")
    victims = 10 if grid == "full" else 3
    assert [cell.kind for cell in cells].count("victim") == victims
    repairs = [cell.recipe["method"] for cell in cells if cell.kind == "purify"]
    assert len(repairs) == victims * (17 if grid == "full" else 4)
    if grid in ("gtsrb", "tiny"):
        assert all(not method.get("augmentation", "").endswith("flip") for method in repairs), "signs are not mirrored"


def test_the_grid_of_d_st_is_the_protocol_of_its_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    def source(_: Located) -> Source:
        return Source("cifar10", "cifar10", ("0", "1"), tuple(map(str, range(10))), (3, 32, 32), 50_000)

    monkeypatch.setattr(axes, "_source", source)
    cells = read_grid(Path(__file__).parents[2] / "benchmarks" / "grids" / "d-st-paper.yaml")
    secured = [cell for cell in cells if cell.kind == "secure"]
    assert len(secured) == 2
    for cell in secured:
        method, setting = cell.work.method, cell.work.setting
        assert (method.epochs, method.head_epochs, method.batch_size) == (200, 10, 512)
        assert inspect.signature(cell.work.network).parameters["width"].default == 64
        assert setting.attack.spare_target
        assert round(setting.attack.poison_rate * 50_000) == 4_500
        assert cell.work.budget is None


def test_a_cell_is_done_by_the_bench_itself(program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = program("grid_cells")
    monkeypatch.setattr(module, "HERE", tmp_path)
    # A process of its own takes seconds to start.
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count))
    (tmp_path / "tiny.yaml").write_text(GRID)
    cells = module.GridCells(tmp_path / "tiny.yaml", ["sift"], lambda *_: "", tmp_path / "work", "cpu", 1)
    (cell,) = cells.left()
    row = cells.run(cell)
    assert 0 <= row["auroc"] <= 1
    assert row["before"]["poisoned_rows"] == 144
    assert (row["method"], row["attack"]) == ("LossIsolation epochs=1", "BadNets")


def test_times_as_fast_are_those_of_the_turns(program: Load) -> None:
    def turn(seed: int, plain: float) -> dict[str, Any]:
        ours = {"seconds": 10.0, "cpu_seconds": 20.0, "epochs": 4, "auroc": 0.99, "peak_mb": 500.0}
        theirs = {**ours, "seconds": plain, "epochs": 10, "learning": 5.0, "pushing apart": 50.0, "scoring": 40.0}
        scoring = {"ours": {"seconds": 2.0}, "naive": {"seconds": 30.0}, "rank correlation": 0.875}
        return {"rows": 1000, "seed": seed, "ours": ours, "naive": theirs, "scoring": scoring, **MACHINE}

    module = program("sifters_speed")
    text = module.written([turn(0, 100.0), turn(1, 90.0), turn(2, 110.0)])
    (summary,) = [line for line in tables(text) if len(line) == 12 and line[0] == "1000"]
    assert summary == ["1000", "3", "10.0", "100.0", "10.0", "5", "7.0", "2.00", "30.00", "15.0", "10", "0.875"]
    assert sum(line[:1] == ["1000"] for line in tables(text)) == 1 + 6


@pytest.mark.slow
def test_a_turn_measures_both_on_the_same_rows(program: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.planted import pictures
    from unbackdoor.sift import FCT

    module = program("sifters_speed")
    monkeypatch.setattr(module, "METHOD", FCT(epochs=1, draws=1))
    monkeypatch.setattr(module, "_alone", lambda work, *arguments: work(*arguments))
    monkeypatch.setattr(importlib.import_module("unbackdoor.sift.quick_model"), "LEAST_STEPS", 1)
    row = module.turn(pictures(300, 0), 100, 0, "cpu", 1)
    assert row["rows"] == 100
    assert row["ours"]["epochs"] == row["naive"]["epochs"] == 1
    assert row["naive"]["seconds"] > row["naive"]["scoring"] > 0
    assert 0 <= row["ours"]["auroc"] <= 1
    assert -1 <= row["scoring"]["rank correlation"] <= 1
    assert "1 " in module.written([row])
