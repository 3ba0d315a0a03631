"""`unbackdoor train --method`: secure training on the command line, on poisoned digits."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import NoReturn

import pytest
from safetensors import safe_open

from tests.commands.test_cli import refuse, run
from unbackdoor.cli import main
from unbackdoor.training import loop

NETWORK = ["--model", "WRN16x1", "--model.width", "4"]
METHOD = ["--method", "TrapAndReplace", "--method.epochs", "2", "--method.head_epochs", "2"]
CLEAN = ["--clean", "digits", "--clean-size", "100", "--threads", "1"]


@pytest.fixture(scope="session")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "poisoned"
    assert main(["poison", "--data", "digits", "--attack", "BadNets", "--out", str(out)]) == 0
    return out


def test_a_method_writes_model_parts_record_and_page(
    poisoned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "--data", str(poisoned), *NETWORK, *METHOD, *CLEAN]
    code, out, _ = run(capsys, *words, "--out", str(tmp_path / "out"), "--json")
    assert code == 0
    result = json.loads(out)
    assert {"acc", "asr", "ra"} <= result["evaluation"].keys()
    assert 0 < result["reconstruction"]["clean"]["value"] < 1
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["options"]["method"]["name"] == "TrapAndReplace"
    assert record["options"]["method"]["head_epochs"] == 2
    assert "recipe" not in record["options"]
    assert len(record["clean_rows"]) == 100
    assert record["reconstruction"] == result["reconstruction"]
    assert any("block3.layer.1" in note for note in record["notes"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Reconstruction error of the decoder" in page
    assert "block3.layer.1" in page
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        mark = json.loads(file.metadata()["unbackdoor"])["backdoored"]
    assert mark["attack"]["name"] == "BadNets"
    assert mark["repaired"] is True, "that it worked is not for the training to say"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *("decoder.safetensors", "model.safetensors", "report.html", "run.json"),
    ]
    model = str(tmp_path / "out" / "model.safetensors")
    words = ["evaluate", "--model", model, "--data", "digits", "--out", str(tmp_path / "seen"), "--json"]
    measured = json.loads(run(capsys, *words)[1])
    assert measured["reconstruction"]["clean"] == pytest.approx(result["reconstruction"]["clean"], rel=1e-4)
    assert measured["evaluation"]["acc"] == result["evaluation"]["acc"]


def test_a_secure_training_that_is_interrupted_before_it_is_saved_repeats_no_epoch(
    poisoned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    def no_epoch(*_: object) -> NoReturn:
        raise AssertionError("an epoch was repeated")

    words = ["train", "--data", str(poisoned), *NETWORK, *METHOD, *CLEAN, "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(importlib.import_module("unbackdoor.commands.train"), "write_report", interrupt)
        assert main(words) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"resume.pt", "resume-trap.pt"}
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "epoch", no_epoch)
        assert main(words) == 0
    assert not list(tmp_path.glob("resume*"))


def test_options_that_would_do_nothing_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    words = refuse(capsys, "train", "--data", "digits", *METHOD, "--recipe.epochs", "3", *out)
    assert "--recipe is of plain training; TrapAndReplace has options of its own" in words
    assert "name a --method that does" in refuse(capsys, "train", "--data", "digits", "--clean", "digits", *out)
    words = refuse(capsys, "train", "--data", "digits", "--method", "ABL", "--clean", "digits", *out)
    assert "ABL uses no clean images" in words
    assert not (tmp_path / "out").exists()
    assert "TrapAndReplace needs clean samples" in refuse(capsys, "train", "--data", "digits", *METHOD, *out)
    assert "unknown trainer 'TrapReplace'; did you mean TrapAndReplace" in refuse(
        capsys, "train", "--data", "digits", "--method", "TrapReplace", *out
    )


def test_help_shows_the_options_of_the_method_and_of_none(capsys: pytest.CaptureFixture[str]) -> None:
    _, plain, _ = run(capsys, "train", "--help")
    assert "TrapAndReplace (now: none)" in " ".join(plain.split())
    assert "--method." not in plain
    assert "--method.head_epochs" in run(capsys, "train", "--method", "TrapAndReplace", "--help")[1]
