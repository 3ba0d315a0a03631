"""What `unbackdoor scan` says of a search that a budget cut short, and what it advises after an inconclusive one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.commands.test_cli import run
from tests.planted import CLASSES, NAMES, network
from tests.scan.tables import TABLE
from unbackdoor.commands.scan import next_steps
from unbackdoor.scan import Finding

UNDECIDED = Finding(backdoored=None, suspected=(), calibrated=False, anomaly=torch.zeros(CLASSES), threshold=1.0)


def advice(*misfits: str, **more: object) -> list[str]:
    """Return what is advised after a verdict that does not fit its table."""
    finding = replace(UNDECIDED, evidence={"calibration": {"misfits": list(misfits)}}, **more)  # type: ignore[arg-type]
    return next_steps(finding, "model.pt")


def test_too_few_clean_images_ask_for_more() -> None:
    misfits = TABLE.misfits(network(0).description, 5, "fp32")
    (step,) = advice(*misfits)
    assert "more clean images" in step
    assert "5 clean images instead of 60" in step
    assert "--budget" not in step


def test_another_precision_asks_for_that_of_the_table() -> None:
    (step,) = advice(*TABLE.misfits(network(0).description, 60, "bf16"))
    assert "Scan again with the table's --precision: this scan has a precision of bf16 instead of fp32" in step


def test_where_no_table_fits_the_model_nobody_is_sent_for_images_or_time() -> None:
    misfits = replace(TABLE, class_names=(*NAMES, "i")).misfits(network(0).description, 60, "fp32")
    (step,) = advice(*misfits)
    assert f"{CLASSES} classes instead of {CLASSES + 1}" in step
    assert "--scanner.table" in step
    assert "--scanner NeuralCleanse" in step
    assert "more clean images" not in step
    assert "--budget" not in step


def test_a_search_that_was_cut_short_asks_for_time() -> None:
    for step in (*advice("searches that the budget cut short", shortened=True), *plain(shortened=True)):
        assert "larger --budget" in step
        assert "clean images" not in step


def plain(**more: object) -> list[str]:
    """Return what is advised after a scanner without tables."""
    return next_steps(replace(UNDECIDED, **more), "model.pt")  # type: ignore[arg-type]


def test_several_reasons_have_a_step_each_and_the_one_without_which_the_others_are_in_vain_comes_first() -> None:
    misfits = replace(TABLE, class_names=(*NAMES, "i")).misfits(network(0).description, 5, "fp32")
    steps = advice(*misfits, "searches that the budget cut short", shortened=True)
    assert len(steps) == 3
    assert [word in step for step, word in zip(steps, ("--scanner.table", "more clean", "--budget"))] == [True] * 3


def test_a_scanner_without_tables_says_itself_what_to_change() -> None:
    (step,) = plain()
    assert "as the sentence of the verdict says" in step
    assert "--budget" not in step
    assert "clean images" not in step


def test_a_search_that_the_budget_cut_short_is_shown(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scan", "--model", str(victim / "model.safetensors"), "--clean", "digits", "--clean-size", "60"]
    words += ["--scanner", "NeuralCleanse"]
    for number, (budget, cut) in enumerate((([], False), (["--budget", "0.001"], True))):
        rounds = "100000" if cut else "2"
        out = tmp_path / str(number)
        more = ["--scanner.rounds", rounds, "--scanner.steps", "2", "--threads", "1", "--out", str(out), *budget]
        _, text, _ = run(capsys, *words, *more)
        assert ("cut short by the budget" in " ".join(text.replace("│", " ").split())) is cut
        assert ("cut short by the budget" in (out / "report.html").read_text()) is cut
        assert json.loads((out / "run.json").read_text())["finding"]["shortened"] is cut
