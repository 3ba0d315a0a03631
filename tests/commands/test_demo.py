"""The demo claims what it measured, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.commands.test_cli import run
from unbackdoor.attacks import load_attack
from unbackdoor.commands import demo
from unbackdoor.commands.demo import conclusion, repaired_provenance, said
from unbackdoor.data import read_images
from unbackdoor.evaluate import Evaluation, Proportion, evaluate
from unbackdoor.models import load_model
from unbackdoor.models.mark import is_repaired
from unbackdoor.purify import SAU
from unbackdoor.scan import Finding, NeuralCleanse
from unbackdoor.testing.samples import same_state, state_of
from unbackdoor.training import Runtime


def measured(acc: int, asr: int) -> Evaluation:
    """Return an evaluation in percent."""
    return Evaluation(acc=Proportion(acc, 100), asr=Proportion(asr, 100), ra=Proportion(0, 100))


def finding(backdoored: bool | None) -> Finding:
    return Finding(
        backdoored=backdoored, suspected=(), calibrated=False, anomaly=torch.zeros(10), threshold=3.5, reason="why"
    )


@pytest.mark.parametrize(
    ("backdoored", "acc", "asr", "title"),
    [
        (True, 97, 10, "found, and repaired"),
        (True, 96, 10, "found, but not repaired"),
        (True, 99, 11, "found, but not repaired"),
        (False, 99, 0, "not found, but repaired"),
        (False, 99, 49, "not found, and not repaired"),
        (None, 99, 0, "scan inconclusive, but repaired"),
    ],
)
def test_title_and_verdict_say_what_was_measured(backdoored: bool | None, acc: int, asr: int, title: str) -> None:
    found, verdict = conclusion(finding(backdoored), finding(False), measured(100, 100), measured(acc, asr))
    assert found == f"BadNets on digits: {title}"
    assert verdict.level == ("not repaired" if "not repaired" in title else "repaired")
    assert f"{asr} % after it" in verdict.headline
    assert verdict.calibrated is False


def test_the_repaired_model_names_its_parent_and_its_clean_samples() -> None:
    clean = read_images("digits", "train").subset(torch.arange(20))
    origin = repaired_provenance({"command": "demo", "inputs": {"digits/test": "x"}}, "f" * 64, clean)
    assert origin["parent"] == "f" * 64
    assert origin["inputs"] == {"backdoored.safetensors": "f" * 64, clean.name: clean.digest()}
    assert origin["command"] == "demo"


def test_a_scan_is_told_with_the_classes_that_it_suspects_so_that_an_alarm_about_another_class_shows() -> None:
    assert said(finding(False)) == "no evidence found"
    assert said(replace(finding(True), suspected=(2,))) == "backdoored, class [2]"


def test_the_demo_writes_both_models_and_a_page_that_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "RECIPE", replace(demo.RECIPE, epochs=1))
    monkeypatch.setattr(demo, "METHOD", SAU(rounds=1, steps=1, batch_size=30))
    monkeypatch.setattr(demo, "SCANNER", NeuralCleanse(rounds=2, steps=2, batch_size=8))
    monkeypatch.setattr(demo, "CLEAN_SIZE", 60)
    out = tmp_path / "demo"
    code, told, err = run(capsys, "demo", "--out", str(out), "--threads", "1", "--json")
    assert code == 0, err
    record = json.loads((out / "run.json").read_text())
    backdoored, repaired = (load_model(out / f"{name}.safetensors") for name in ("backdoored", "repaired"))
    assert repaired.provenance["parent"] == backdoored.sha256
    assert backdoored.backdoored is not None
    assert [is_repaired(one) for one in (repaired, backdoored)] == [True, False]
    assert not same_state(state_of(repaired.network), state_of(backdoored.network))
    test = read_images("digits", "test")
    attack = load_attack(out / "attack.safetensors")
    # What it says is true of the files that it wrote.
    for model, name in ((backdoored, "before"), (repaired, "after")):
        runtime = Runtime(device="cpu", threads=1)
        assert record[name] == evaluate(model.network, test, runtime, attack.trigger, attack.criterion).to_json()
    assert {"scan", "rescan"} <= record.keys()
    assert json.loads(told)["exit_code"] == 0
    page = (out / "report.html").read_text()
    assert "BadNets on digits: " in page
    assert page.count("<svg") > 0
