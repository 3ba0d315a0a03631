"""The demo claims what it measured, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unbackdoor.commands.demo import conclusion, repaired_provenance, said
from unbackdoor.data import read_images
from unbackdoor.evaluate import Evaluation, Proportion
from unbackdoor.scan import Finding


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
