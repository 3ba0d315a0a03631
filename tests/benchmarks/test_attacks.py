"""The programs that measure attacks: what their tables judge, and which attacks are timed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from unbackdoor.attacks import ATTACKS, BPP, Attack, BadNets, TaCT, WaNet, save_attack
from unbackdoor.data import ImageSet
from unbackdoor.options import options_of
from unbackdoor.training import Runtime

Load = Callable[[str], ModuleType]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """The programs, which are run as files and find their neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module


def images(count: int) -> ImageSet:
    pixels = torch.randint(0, 255, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet(images=pixels, labels=torch.arange(count) % 10, class_names=tuple("abcdefghij"))


def share(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01}


def row(attack: str, acc: float, asr: float | None = 0.95, **changes: Any) -> dict[str, Any]:
    """Return a row as the program writes it, of 500 seconds on two undisturbed cores."""
    made = {"device": "cpu", "threads": "2", "torch": "2", "data": "cifar10", "width": 16, "seed": 0}
    measured = {"acc": share(acc), **({} if asr is None else {"asr": share(asr)})}
    return {**made, "attack": attack, **measured, "seconds": 500.0, "cpu_seconds": 990.0, "resumed": False, **changes}


def table(text: str) -> list[dict[str, str]]:
    """Return the lines of a table by the names of their columns."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in cells} == {len(cells[0])}, "every line has a cell for each column"
    return [dict(zip(cells[0], line)) for line in cells[2:]]


def written(program: Load, rows: list[dict[str, Any]], width: int = 16, device: str = "cpu") -> list[dict[str, str]]:
    return table(program("attacks").written(rows, width, device))


def test_accuracy_is_judged_beside_clean_training_with_the_same_seed(program: Load) -> None:
    rows = [
        row("None", 0.90, None, seed=0),
        row("None", 0.88, None, seed=1),
        row("BadNets", 0.88, seed=0),
        row("BadNets", 0.8799, seed=1),
        row("Blended", 0.8699, seed=2),
        row("Blended", 0.8799, seed=0),
    ]
    told = {(line["attack"], line["seed"]): line["to clean training"] for line in written(program, rows)}
    assert told["BadNets", "0"] == "-2.00: yes"
    assert told["BadNets", "1"] == "-0.01: yes"
    assert told["Blended", "2"] == "-2.01: no", "no clean training with that seed: their mean, 89 %"
    assert told["Blended", "0"] == "-2.01: no"
    assert told["None", "0"] == ""


def test_success_is_judged_on_cifar10_and_on_gtsrb_by_their_own_goals(program: Load) -> None:
    module = program("attacks")
    for data, asr, goal in (
        ("cifar10", 0.93, ">= 94: no"),
        ("cifar10", 0.94, ">= 94: yes"),
        ("gtsrb", 0.93, ">= 90: yes"),
        ("gtsrb", 0.899, ">= 90: no"),
        ("tiny_imagenet", 0.93, ""),
    ):
        (line,) = table(module.written([row("BadNets", 0.9, asr, data=data)], 16, "cpu"))
        assert line["goal"] == goal


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"seconds": 720.0, "cpu_seconds": 1400.0}, "yes"),
        ({"seconds": 720.0, "cpu_seconds": 900.0}, "yes"),
        ({"seconds": 721.0, "cpu_seconds": 1400.0}, "no"),
        ({"seconds": 903.0, "cpu_seconds": 1380.0}, "not judged: disturbed"),
        ({"seconds": 100.0, "cpu_seconds": 190.0, "resumed": True}, "not judged: resumed"),
        ({"seconds": 2000.0, "cpu_seconds": 3900.0, "data": "gtsrb"}, ""),
    ],
)
def test_time_is_judged_where_the_clock_can_be_believed(program: Load, changes: dict[str, Any], verdict: str) -> None:
    (line,) = written(program, [row("BadNets", 0.9, **changes)])
    assert line["<= 12 min"] == verdict
    assert (line["seconds"] == "resumed") == bool(changes.get("resumed"))


def test_papers_figures_stand_beside_the_rows_that_poison_as_they_do(program: Load) -> None:
    names = (
        "SIG",
        "SIG, whole class",
        "LabelConsistent",
        "LabelConsistent, whole class",
        "BadNets, all-to-all",
        "CTRL",
    )
    told = {line["attack"]: line["paper's ACC / ASR"] for line in written(program, [row(one, 0.9) for one in names])}
    assert told == {
        "SIG": "93.40 / 95.43 (2)",
        "SIG, whole class": "84.49 / 97.87 (1)",
        "LabelConsistent": "",
        "LabelConsistent, whole class": "84.55 / 99.93 (1)",
        "BadNets, all-to-all": "91.89 / 74.42 (1)",
        "CTRL": "95.52 / 98.80 (2)",
    }
    cells = {cell.name for cell in program("attacks").cells()}
    assert {*program("attacks").FTSAM, *program("attacks").AGPD} <= cells


def test_the_full_width_on_a_gpu_is_judged_by_the_papers_figures(program: Load) -> None:
    def verdict(acc: float, asr: float, device: str = "cuda") -> str:
        (line,) = written(program, [row("BadNets", acc, asr, width=64)], 64, device)
        return line["paper's ACC / ASR"]

    assert verdict(0.93, 0.95) == "91.82 / 93.79 (1): yes"
    assert verdict(0.94, 0.95) == "91.82 / 93.79 (1): no"
    assert verdict(0.92, 0.96) == "91.82 / 93.79 (1): no"
    assert verdict(0.92, 0.94, "cpu") == "91.82 / 93.79 (1)"


def test_a_mean_over_seeds_has_students_interval(program: Load) -> None:
    rows = [row("WaNet", acc, asr, seed=seed) for seed, (acc, asr) in enumerate([(0.88, 0.9), (0.89, 0.9), (0.9, 0.9)])]
    mean = written(program, rows)[-1]
    # 4.303 (two degrees of freedom) times 1 point by the root of 3.
    assert (mean["attack"], mean["seed"], mean["ACC %"]) == ("WaNet", "mean", "**89.00** [86.52, 91.48]")
    assert mean["ASR %"] == "**90.00** [90.00, 90.00]"


def test_rows_of_the_main_job_get_their_triggers_visibility_and_stand_beside_their_like_alone(
    program: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, test = program("attacks"), images(200)
    monkeypatch.setattr(module, "VICTIMS", tmp_path)
    monkeypatch.setattr(module, "read_images", lambda *_: test)
    for name in ("BadNets", "Blended", "SIG"):
        attack = ATTACKS[name]()
        save_attack(tmp_path / f"{name}-0.attack.safetensors", _prepared(attack, test), options_of(attack))
    done = [{**row(name, 0.9, seed=seed), "job": "victim"} for name in ("BadNets", "SIG") for seed in (0, 1)]
    (tmp_path / "main.jsonl").write_text("".join(json.dumps(one) + "\n" for one in done))
    rows = module.Rows(tmp_path / "rows.jsonl")
    rows.append(row("BadNets", 0.9, seed=7))
    monkeypatch.setattr(module, "MAIN_JOB", module.Rows(tmp_path / "main.jsonl"))
    found = module.known(rows, tmp_path, True)
    assert [(one["attack"], one["seed"]) for one in found] == [
        ("BadNets", 0),
        ("BadNets", 1),
        ("SIG", 0),
        ("BadNets", 7),
    ]
    assert found[0]["stealth"]["changed"] == pytest.approx(9 / 1024)
    assert found[2]["stealth"]["largest"] == pytest.approx(40 / 255, abs=0.003)
    assert "stealth" not in found[1], "another seed has another trigger, perhaps"
    line = table(module.written(found, 16, "cpu"))[0]
    assert (line["changed %"], line["largest of 255"]) == ("0.9", "255")
    alone = module.known(rows, tmp_path, False)
    assert [one["seed"] for one in alone] == [7], "those of a processor are no rows of a GPU's table"


def _prepared(attack: Attack, train: ImageSet) -> Any:
    return attack.prepare(train, lambda: pytest.fail("no model is needed"), Runtime(device="cpu", threads=1))


def test_every_attack_that_needs_no_training_is_timed_and_the_others_say_why(program: Load) -> None:
    module = program("poisoning_speed")
    told = {name: module.timeable(ATTACKS[name]()) for name in ATTACKS}
    reasons = {name: one for name, one in told.items() if isinstance(one, str)}
    assert reasons == {
        "Blind": module.THROUGH_THE_LOSS,
        **dict.fromkeys(("InputAware", "LIRA"), module.LEARNED),
        **dict.fromkeys(("AdaptiveTrap", "Invisible", "LabelConsistent", "LF", "SSBA", "TrojanNN"), module.SEARCHED),
    }
    text = module.table({"device": "cpu", "threads": "2", "torch": "2"}, [{"attack": "Blind", "reason": "why"}])
    assert "- Blind: why" in text


@pytest.mark.parametrize("attack", [BadNets(), WaNet(), BPP(), TaCT()], ids=lambda attack: type(attack).__name__)
def test_what_is_timed_is_the_poisoning_at_both_rates(
    program: Load, monkeypatch: pytest.MonkeyPatch, attack: Any
) -> None:
    module = program("poisoning_speed")
    monkeypatch.setattr(module, "COUNT", 400)
    train, runtime = images(400), Runtime(device="cpu", threads=1)
    most = module.everything(attack)
    fitted = module.poisoning(most, train, runtime)()
    expected = {"BadNets": 400, "WaNet": 399, "BPP": 399, "TaCT": 40}[type(attack).__name__]
    assert int((fitted.kinds == 1).sum()) == expected
    assert module.seconds(lambda: None) >= 0
