"""The program that measures filters of inputs: the images that it mixes, its victims, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.planted import pictures, planted, runtime
from unbackdoor.attacks import load_attack, save_attack


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program, which is run as a file and finds its neighbours as such."""
    with monkeypatch.context() as changed:
        changed.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import input_filters

        yield input_filters


@pytest.fixture
def victim(program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a victim where the program looks for them."""
    (tmp_path / "victims").mkdir()
    (tmp_path / "victims" / "None-0.safetensors").touch()
    save_attack(tmp_path / "victims" / "Patch-0.attack.safetensors", planted(0).fitted, {})
    monkeypatch.setattr(program, "HERE", tmp_path)
    # Its network is none of those that a file can name.
    monkeypatch.setattr(program, "load_model", lambda path: SimpleNamespace(network=planted(0).suspect))
    return "Patch-0"


def test_no_image_comes_both_as_it_is_and_with_the_trigger(program: ModuleType, victim: str, tmp_path: Path) -> None:
    attack = load_attack(tmp_path / "victims" / f"{victim}.attack.safetensors")
    test = pictures(120, 5)
    plain, others = program.parted(test, 50, torch.Generator().manual_seed(0))
    images, triggered = program.mixed(plain, others, attack, torch.Generator().manual_seed(0))
    originals = others.subset(attack.criterion.counted(others.labels).nonzero().squeeze(1))

    def contents(given: torch.Tensor) -> list[list[int]]:
        return sorted(given.flatten(1).tolist())

    assert contents(images[~triggered]) == contents(plain.images)
    assert contents(images[triggered]) == contents(attack.trigger.stamp(originals.images))
    assert len(plain) == 50 > len(originals) > 0
    assert not {plain.images[i].numpy().tobytes() for i in range(50)} & {
        originals.images[i].numpy().tobytes() for i in range(len(originals))
    }
    assert 0 < int(triggered[:30].sum()) < 30, "they are mixed"


def test_a_victim_is_measured_as_the_filter_sees_it(
    program: ModuleType, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program.victims() == [victim], "clean models have no attack"

    class Knows:
        """Sees the patch, which is white, in the corner."""

        def score(self, model: Any, images: torch.Tensor, given: Any) -> torch.Tensor:
            return (planted(0).fitted.trigger.stamp(images) == images).flatten(1).all(1).float()

    class KnowsNothing:
        def score(self, model: Any, images: torch.Tensor, given: Any) -> torch.Tensor:
            return torch.zeros(len(images))

    monkeypatch.setattr(program, "INPUT_FILTERS", {"Knows": Knows, "KnowsNothing": KnowsNothing})
    rows = [program.run(victim, name, planted(0).test, 100, runtime()) for name in ("Knows", "KnowsNothing")]
    assert [(row["auroc"], row["tpr_at_1"]) for row in rows] == [(1.0, 1.0), (0.5, 0.0)]
    assert rows[0]["asr"] > 0.8


def row(victim: str, name: str, auroc: float, tpr: float) -> dict[str, Any]:
    area = {"auroc": auroc, "auroc_low": auroc - 0.01, "auroc_high": auroc + 0.01}
    share = {"tpr_at_1": tpr, "tpr_at_1_low": tpr - 0.1, "tpr_at_1_high": tpr + 0.1}
    machine = {"device": "cpu (x)", "threads": "1", "torch": "2", "seconds": 2.0, "cpu_seconds": 3.9}
    return {
        "victim": victim,
        "filter": name,
        "seed": "0",
        "count": 50,
        "images": 95,
        "asr": 0.9,
        **area,
        **share,
        **machine,
    }


def test_means_are_over_victims_and_every_row_is_written(program: ModuleType) -> None:
    table = program.written(
        [row("A-0", "TeCo", 0.9, 0.5), row("B-0", "TeCo", 0.6, 0.1), row("A-0", "ScaleUp", 0.7, 0.2)]
    )
    assert "| TeCo | 2 | 0.7500 | 0.6000 | 30.00 | 48 |" in table
    assert "| ScaleUp | 1 | 0.7000 | 0.7000 | 20.00 | 48 |" in table
    assert "| B-0 | TeCo | 0 | 95 | 90.00 | 0.6000 [0.5900, 0.6100] | 10.00 [0.00, 20.00] | 2.0 | 3.9 |" in table
    assert "Machine: cpu (x), 1 threads, torch 2" in table
