"""The program that looks at NPD and SAU epoch by epoch: that it disturbs nothing, goes on, and tells what it saw."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.planted import NAMES, pictures, runtime
from tests.purify.test_npd import staged
from unbackdoor.attacks import BadNets, save_attack
from unbackdoor.data import DefenderData
from unbackdoor.models import Network, save_model
from unbackdoor.options import options_of
from unbackdoor.purify import NPD, SAU
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime

METHODS: dict[str, NPD | SAU] = {
    "NPD": NPD(warm_up_epochs=1, epochs=3, batch_size=12),
    "SAU": SAU(rounds=3, batch_size=12, learning_rate=1e-3),
}
MIXED = Runtime(device="cpu", precision="bf16", threads=1)


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """The programs, which are run as files and find their neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module


class Place:
    """A folder with a victim, and the program that works there."""

    def __init__(self, module: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.folder = module, folder
        monkeypatch.setattr(module, "HERE", folder)
        monkeypatch.setattr(module, "CLEAN_SIZE", 24)
        victim, attack = staged("PreActResNet18"), BadNets(target=2, poison_rate=0.1)
        fitted = attack.prepare(pictures(80, 1), lambda: victim, runtime())
        (folder / "victims").mkdir()
        file = folder / "victims" / "Toy-0.safetensors"
        save_attack(file.with_suffix(".attack.safetensors"), fitted, options_of(attack))
        mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()}
        save_model(file, victim, provenance={}, backdoored=mark)
        self.rows = module.Rows(folder / "results" / "purifier_trace.jsonl")

    def trace(self, method: str, kind: str, budget: float | None = None) -> dict[str, Any]:
        run = self.module.Run(METHODS[method], "Toy-0", kind, budget, 0)
        work = self.folder / "work"
        found = self.module.Tracer(pictures(80, 1), pictures(40, 2), self.rows, work, "cpu", 1).trace(run)
        assert list(work.iterdir()) == []
        return {name: value for name, value in found.items() if name not in ("date", "commit")}


@pytest.fixture
def place(program: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(program("purifier_trace"), tmp_path, monkeypatch)


def stages(row: dict[str, Any]) -> list[tuple[str, int, int]]:
    return [(one["stage"], one["epoch"], one["epochs"]) for one in row["epochs"]]


EPOCHS = {
    "NPD": [("NPD, warm-up", 1, 1), ("NPD", 1, 3), ("NPD", 2, 3), ("NPD", 3, 3)],
    "SAU": [("SAU", 1, 3), ("SAU", 2, 3), ("SAU", 3, 3)],
}


@pytest.mark.parametrize("kind", ["bf16", "fp32", "naive"])
@pytest.mark.parametrize("method", ["NPD", "SAU"])
def test_every_epoch_is_looked_at_and_measured(place: Place, method: str, kind: str) -> None:
    row = place.trace(method, kind)
    assert stages(row) == EPOCHS[method]
    beside = set() if kind == "naive" else set(place.module.BESIDE)
    assert set(place.module.SHARES) | beside | {"clean CE", "fooled"} <= set(row["epochs"][-1])
    if kind == "fp32":
        assert all(one["pixels alike"] > 0.99 and one["cosine"] > 0.999 for one in row["epochs"])
    if method == "NPD":
        assert row["epochs"][-1]["from identity"] > 0
        assert all(0 <= one["entropy"] <= math.log(len(NAMES)) for one in row["epochs"])
    assert 0 <= row["after"]["asr"] <= 1
    assert row["filters"][0]["layer"] == "body.conv1"
    text = place.module.write(place.rows).read_text()
    assert f"## {method} on Toy-0" in text
    assert f"| {kind} | none | 0 | end |" in text


@pytest.mark.parametrize("kind", ["fp32", "naive"])
@pytest.mark.parametrize("method", ["NPD", "SAU"])
@pytest.mark.parametrize("after", [1, *(pytest.param(after, marks=pytest.mark.slow) for after in (0, 2))])
def test_an_interrupted_run_goes_on_and_sees_the_same(
    place: Place, method: str, kind: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = getattr(place.module, f"{method}Looks")
    original, seen = looks.at, []

    def interrupted(self: Any, model: Network) -> dict[str, float]:
        seen.append(model)
        if len(seen) == after + 1:
            raise KeyboardInterrupt
        found: dict[str, float] = original(self, model)
        return found

    monkeypatch.setattr(looks, "at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        place.trace(method, kind)
    assert place.rows.read() == []
    again = place.trace(method, kind)
    assert len(seen) == len(EPOCHS[method]) + 1, "no finished epoch was done again"
    assert place.trace(method, kind) == again


@pytest.mark.parametrize("kind", ["bf16", "fp32"])
@pytest.mark.parametrize("name", ["NPD", "SAU"])
def test_looking_does_not_change_the_repair(program: Callable[[str], ModuleType], name: str, kind: str) -> None:
    trace, suspect, clean, method = program("purifier_trace"), staged("PreActResNet18"), pictures(24, 3), METHODS[name]
    results = []
    for looking in (True, False):
        model = copy.deepcopy(suspect).requires_grad_(True)
        given = MIXED if kind == "bf16" else runtime()
        looks = trace.NPDLooks(method, clean, 2, given)
        if name == "SAU":
            looks = trace.SAULooks(method, suspect, clean, 2, given)
        seen = []

        def look(*_: object, model: Network = model, looks: Any = looks, seen: list[Any] = seen) -> None:
            before = copy.deepcopy(state_of(model))
            seen.append({**looks.at(model), **looks.agreement(model)})
            assert same_state(before, state_of(model))

        if looking:
            watch = trace.Watch(2, {}, look)
            given = Runtime(device="cpu", precision=given.precision, threads=1, progress=watch)
        method.repair(model, DefenderData(clean=clean), given, None)
        results.append(model)
        assert bool(seen) == looking
    assert same_state(state_of(results[0]), state_of(results[1]))


def test_under_a_budget_the_plain_one_does_as_many_epochs_as_ours(place: Place) -> None:
    with pytest.raises(SystemExit, match="not traced yet"):
        place.trace("NPD", "naive", budget=1.0)
    row = place.trace("NPD", "fp32", budget=1.0)
    assert stages(row) == EPOCHS["NPD"]
    shorter = {**row, "key": row["key"].replace("fp32", "bf16"), "epochs": row["epochs"][:-1]}
    place.rows.append(shorter)
    assert stages(place.trace("NPD", "naive", budget=1.0)) == EPOCHS["NPD"], "the longer of both"
    kept = [one for one in place.rows.read() if "fp32" not in one["key"] and "naive" not in one["key"]]
    place.rows.path.unlink()
    place.rows.append(kept[0])
    assert stages(place.trace("NPD", "naive", budget=1.0)) == [
        ("NPD, warm-up", 1, 1),
        ("NPD", 1, 2),
        ("NPD", 2, 2),
    ]


def test_the_figures_are_those_of_small_examples(program: Callable[[str], ModuleType]) -> None:
    looks = program("purifier_looks")
    assert looks.entropy(torch.tensor([3, 3, 3])) == 0
    assert looks.entropy(torch.tensor([0, 1, 0, 1])) == pytest.approx(math.log(2))
    assert looks.same_way(torch.tensor([0.2, -0.2, 0.0, 1e-8]), torch.tensor([0.1, 0.1, 0.0, 0.0])) == 0.75
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert looks.cosine(gradients, [-2 * one for one in gradients]) == pytest.approx(-1)
    assert looks.cosine(gradients, [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])]) == pytest.approx(0.6)
    layer = torch.nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -3.0]).view(2, 1, 1, 1))
    assert looks.filter_norms(layer) == [{"layer": "", "filters": 2, "mean": 2.0, "most": 3.0}]
