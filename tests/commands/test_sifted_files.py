"""`unbackdoor sift` file by file, through Ray: from a folder of files to tables, a page and cleaned files."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from tests.commands.networks import tiny_network
from tests.commands.test_cli import refuse, run
from tests.sift.sharded.here import Here, write_files
from unbackdoor.commands import sifted_files
from unbackdoor.data import ImageSet, read_images
from unbackdoor.models import save_model

FILES = [400, 300, 500, 597]
QUICK = ["--threads", "2", "--precision", "fp32", "--device", "cpu"]


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return read_images("digits", "any")


@pytest.fixture
def given(tmp_path: Path, digits: ImageSet) -> list[str]:
    """The words that name the digits in four files, and a network for them."""
    write_files(tmp_path / "data", digits, FILES)
    save_model(tmp_path / "model.safetensors", tiny_network(), provenance={})
    return ["sift", "--data", str(tmp_path / "data"), "--model", str(tmp_path / "model.safetensors"), *QUICK]


def test_files_are_sifted_listed_shown_and_cleaned(
    tmp_path: Path, given: list[str], digits: ImageSet, capfd: pytest.CaptureFixture[str]
) -> None:
    out, cleaned = tmp_path / "out", tmp_path / "cleaned"
    words = [*given, "--in-memory", "1000", "--method", "LossIsolation", "--out", str(out), "--json"]
    code, printed, error = run(capfd, *words, "--clean-out", str(cleaned))
    assert (code, error) == (3, ""), "Ray says nothing among our answers"
    result = json.loads(printed)
    assert result["held"] == {"clean": 1780, "poisoned": 17, "undecided": 0}
    assert (result["files"], result["files_kept"], result["rows_learned_from"]) == (4, 0, 0)
    tables = [parquet.read_table(path) for path in sorted((out / "suspicion").glob("*.parquet"))]
    assert [len(table) for table in tables] == FILES
    held = torch.tensor([word == "poisoned" for table in tables for word in table["suspicion"].to_pylist()])
    assert torch.equal(read_images(cleaned, "any").images, digits.images[~held])
    page = (out / "report.html").read_text()
    assert "LossIsolation ranks rows; it cannot say whether any is poisoned" in page
    assert "Most suspicious of class 3" in page
    assert "train-00002-of-00004.parquet, row " in page
    assert page.count("<svg") > 1
    record = json.loads((out / "run.json").read_bytes())
    assert record["suspicion"]["held"] == result["held"]
    assert set(record["inputs"]) == {"data/train", "model.safetensors"}
    assert not list(out.glob("resume*"))


def test_cleaned_files_are_seen_last_so_that_an_interrupted_command_goes_on(
    tmp_path: Path, given: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where they are there, the same command is refused."""
    monkeypatch.setattr(sifted_files, "Workers", lambda **_: nullcontext(Here()))
    out, cleaned = tmp_path / "out", tmp_path / "cleaned"
    words = [*given, "--in-memory", "0", "--method", "LossIsolation", "--out", str(out), "--clean-out", str(cleaned)]

    def stop(*_: object) -> None:
        assert len(list(tmp_path.glob(".cleaned.*/*.parquet"))) == len(FILES)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sifted_files, "write_report", stop)
        assert run(capfd, *words)[0] == 130
    assert not cleaned.exists()
    assert not list(tmp_path.glob(".cleaned*"))
    code, printed, _ = run(capfd, *words, "--json")
    assert code == 3
    assert json.loads(printed)["files_kept"] == len(FILES)
    assert len(read_images(cleaned, "any")) == 1780


def test_what_cannot_work_is_said_before_any_work(
    tmp_path: Path, given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = refuse(capsys, *given, "--in-memory", "1000")
    assert "Consensus needs all rows at once; choose --method FCT or LossIsolation" in words
    loss = ["--method", "LossIsolation"]
    assert "leave --clean out" in refuse(capsys, *given, *loss, "--in-memory", "0", "--clean", "digits")
    assert "--sample must be 2 rows or more" in refuse(capsys, *given, *loss, "--in-memory", "0", "--sample", "1")
    words = refuse(capsys, *given, *loss, "--in-memory", "0", "--gpus-per-worker", "1.5")
    assert "--gpus-per-worker is 0, a part of a GPU" in words
    assert "sifted file by file" in refuse(capsys, *given, *loss, "--address", "127.0.0.1:6379")
    path = tmp_path / "data" / "train-00002-of-00004.parquet"
    path.write_bytes(path.read_bytes()[:5000])
    words = refuse(capsys, *given, *loss, "--in-memory", "0")
    assert "cannot read" in words
    assert path.name in words
