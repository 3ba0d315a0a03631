"""A command that is interrupted, wherever, loses no finished epoch, and promises nothing that it does not keep."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from safetensors import safe_open

from tests.commands.conftest import NETWORK, QUICK
from unbackdoor.cli import COMMANDS, main
from unbackdoor.training import loop

SHORT = ["--recipe.epochs", "2", *QUICK[2:]]
MAKE_MODELS = ("attack", "purify", "train")
"""What else goes on has tests of its own."""
PROMISE = "the same command goes on where this one stopped"


def command_words(command: str, victim: Path) -> list[str]:
    """Return a quick command, all but its --out."""
    if command == "purify":
        model = str(victim / "model.safetensors")
        method = ["--method", "SAU", "--method.rounds", "2", "--method.batch_size", "64", "--rescan", "false"]
        return ["purify", "--model", model, "--clean", "digits", "--clean-size", "200", "--threads", "1", *method]
    return [command, "--data", "digits", *NETWORK, *SHORT]


def interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def no_epoch(*_: object) -> NoReturn:
    raise AssertionError("an epoch was repeated")


def results(folder: Path) -> dict[str, object]:
    """Return what a run measured."""
    record = json.loads((folder / "run.json").read_text())
    return {name: record.get(name) for name in ("loss", "evaluation", "clean_accuracy", "options")}


@pytest.mark.parametrize("command", MAKE_MODELS)
def test_an_interruption_between_training_and_saving_loses_nothing(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    words, whole, again = command_words(command, victim), tmp_path / "whole", tmp_path / "again"
    assert main([*words, "--out", str(whole)]) == 0
    assert not (whole / "resume.pt").exists(), "a saved model leaves no state behind"
    writes = "attempt_report" if command == "purify" else "write_report"
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module(f"unbackdoor.commands.{command}"), writes, interrupt)
        assert main([*words, "--out", str(again)]) == 130
    assert (again / "resume.pt").exists()
    assert not (again / "model.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "epoch", no_epoch)
        assert main([*words, "--out", str(again)]) == 0
    assert not (again / "resume.pt").exists()
    assert results(again) == results(whole)
    with (
        safe_open(again / "model.safetensors", "pt") as ours,
        safe_open(whole / "model.safetensors", "pt") as theirs,
    ):
        names = list(theirs.keys())
        assert list(ours.keys()) == names
        assert all(torch.equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in names)


def test_a_model_that_cannot_be_saved_leaves_the_state(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbackdoor.commands import workspace

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "save_model", lambda *_, **__: interrupt())
        assert main([*command_words("train", victim), "--out", str(tmp_path)]) == 130
    assert (tmp_path / "resume.pt").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_going_on_is_promised_by_the_commands_that_keep_it_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.setattr("unbackdoor.cli._run", interrupt)
    assert main([command]) == 130
    error = capsys.readouterr().err
    assert "unbackdoor: interrupted" in error
    # Or a store of what is finished.
    keeps_a_state = command in ("bench", "zoo") or hasattr(
        importlib.import_module(f"unbackdoor.commands.{command}"), "RESUME"
    )
    assert (PROMISE in error) is keeps_a_state


def test_an_interruption_without_a_command_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("unbackdoor.cli._run", interrupt)
    assert main([]) == 130
    assert PROMISE not in capsys.readouterr().err
