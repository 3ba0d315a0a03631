"""The program that measures what `filter` answers: the images that come, what is counted, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.planted import planted, runtime
from unbackdoor.attacks import save_attack
from unbackdoor.sift import TeCo


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, with one victim where it looks for them."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import filtering

        (tmp_path / "victims").mkdir()
        save_attack(tmp_path / "victims" / "Patch-0.attack.safetensors", planted(0).fitted, {})
        for name, value in {"HERE": tmp_path, "CLEAN": 60, "CAME": 60, "STAMPED": 30}.items():
            changed.setattr(filtering, name, value)
        # Its network is none of those that a file can name.
        changed.setattr(filtering, "load_model", lambda path: SimpleNamespace(network=planted(0).suspect))
        yield filtering


@dataclass(frozen=True, kw_only=True)
class Knows(TeCo):
    """Sees the patch, which is white, in the corner."""

    def inspect(self, model: Any, images: torch.Tensor, given: Any) -> torch.Tensor:
        return (planted(0).fitted.trigger.stamp(images) == images).flatten(1).all(1).float()


def test_what_is_held_is_counted_with_and_without_the_trigger(program: ModuleType) -> None:
    some, none = (
        program.run("Patch-0", Knows(), 0.05, triggered, planted(0).test, runtime()) for triggered in (True, False)
    )
    assert 0 < some["with_trigger"] < 30, "those of the attacker's class fall out"
    assert some["images"] == 30 + some["with_trigger"]
    assert some["held"] == some["held_with_trigger"] == some["with_trigger"]
    assert (some["verdict"], some["filter"], some["false_alarms"]) == (True, "Knows", 0.05)
    assert (none["images"], none["with_trigger"], none["held"], none["verdict"]) == (60, 0, 0, False)


def row(victim: str, with_trigger: int, held: int, right: int, verdict: bool | None) -> dict[str, Any]:
    machine = {"device": "cpu (x)", "threads": "1", "torch": "2", "seconds": 2.0, "seed": "0"}
    counts = {"images": 100, "with_trigger": with_trigger, "compared_with": 50, "held": held}
    said = {"held_with_trigger": right, "by_chance": 0.25, "verdict": verdict}
    case = {"filter": "ScaleUp", "options": {"by_class": True}, "false_alarms": 0.05}
    return {"victim": victim, **case, **counts, **said, **machine}


def test_verdicts_are_counted_and_every_row_is_written(program: ModuleType) -> None:
    table = program.written(
        [
            row("A-0", 10, 14, 5, True),
            row("A-0", 0, 20, 0, True),
            row("B-0", 10, 0, 0, None),
            row("B-0", 0, 0, 0, False),
        ]
    )
    assert "| ScaleUp by class | 5 % | 2 | 1 | 1 | 1 | 25.00 | 7.50 |" in table
    assert "| A-0 | ScaleUp by class | 5 % | 0 | 100 | 10 | 50 | 14 | 5 | 0.25 | triggered | 2.0 |" in table
    assert "| B-0 | ScaleUp by class | 5 % | 0 | 100 | 0 | 50 | 0 | 0 | 0.25 | no evidence | 2.0 |" in table
    assert "Machine: cpu (x), 1 threads, torch 2" in table
