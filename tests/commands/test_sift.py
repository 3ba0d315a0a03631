"""`unbackdoor sift`, from data on disk to a table, a page and cleaned data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from tests.commands.test_cli import refuse, run
from unbackdoor.attacks import load_attack
from unbackdoor.data import ImageSet, read_images

QUICK = ["--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits that the victim was trained on, as `unbackdoor poison` writes them."""
    from unbackdoor.cli import main

    out = tmp_path_factory.mktemp("data") / "poisoned"
    assert main(["poison", "--data", "digits", "--attack", "BadNets", "--out", str(out), "--threads", "1"]) == 0
    return out


def test_poisoned_rows_are_found_listed_shown_and_left_out(
    tmp_path: Path, poisoned: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, cleaned = tmp_path / "sifted", tmp_path / "cleaned"
    arguments = ["--data", str(poisoned), "--model", str(victim / "model.safetensors"), "--method", "SCAn"]
    code, printed, _ = run(capsys, "sift", *arguments, "--out", str(out), "--clean-out", str(cleaned), "--json", *QUICK)
    result = json.loads(printed)
    rows = read_images(poisoned, "any")
    mask = load_attack(poisoned / "attack.safetensors").kinds == 1
    table = parquet.read_table(out / "suspicion.parquet")
    held = torch.tensor([word == "poisoned" for word in table["suspicion"].to_pylist()])
    assert table["row"].to_pylist() == list(range(len(rows)))
    assert table["label"].to_pylist() == rows.labels.tolist()
    assert code == result["exit_code"] == 1
    assert result["held"]["poisoned"] == int(held.sum()) > 0
    assert float(mask[held].float().mean()) > 0.9
    assert float(held[mask].float().mean()) > 0.9
    back = read_images(cleaned, "train")
    assert torch.equal(back.images, rows.images[~held])
    assert torch.equal(read_images(cleaned, "test").images, read_images(poisoned, "test").images)
    kept = parquet.read_table(next(cleaned.rglob("train*.parquet")))
    assert kept["poisoned"].to_pylist() == mask[~held].tolist()
    page = (out / "report.html").read_text()
    assert "look poisoned to SCAn" in page
    assert "Most suspicious of class" in page
    assert page.count("<svg") > 2
    record = json.loads((out / "run.json").read_bytes())
    assert record["suspicion"]["held"] == result["held"]
    assert record["options"]["method"]["name"] == "SCAn"
    assert not list(out.glob("resume*"))


def test_without_a_model_one_is_trained_and_a_ranking_is_no_verdict(
    tmp_path: Path, tiny_images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "data.npz", tmp_path / "sifted"
    small = tiny_images.images[:48, :, :12, :12].permute(0, 2, 3, 1)
    np.savez(source, images=small.numpy(), labels=tiny_images.labels[:48].numpy())
    arguments = ["--data", str(source), "--method", "FCT", "--method.draws", "1", "--method.epochs", "1"]
    code, printed, _ = run(capsys, "sift", *arguments, "--out", str(out), "--budget", "0.05", *QUICK)
    assert code == 3
    assert "held poisoned" in printed
    assert parquet.read_table(out / "suspicion.parquet").num_rows == 48
    page = (out / "report.html").read_text()
    assert "cannot say whether any is poisoned" in page
    assert not list(out.glob("resume*"))
    # An earlier answer of the same command is replaced.
    assert run(capsys, "sift", *arguments, "--out", str(out), "--budget", "0.05", *QUICK)[0] == 3


def test_an_interrupted_sifting_goes_on(
    tmp_path: Path, tiny_images: ImageSet, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unbackdoor.commands import sift

    source, out = tmp_path / "data.npz", tmp_path / "sifted"
    small = tiny_images.images[:48, :, :8, :8].permute(0, 2, 3, 1)
    np.savez(source, images=small.numpy(), labels=tiny_images.labels[:48].numpy())
    arguments = ["sift", "--data", str(source), "--method", "FCT", "--method.draws", "1", "--method.epochs", "2"]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sift, "write_table", stop)
        code, _, error = run(capsys, *arguments, "--out", str(out), "--budget", "0.02", *QUICK)
    assert code == 130
    assert "goes on where this one stopped" in error
    assert {path.name for path in out.glob("resume*")} == {"resume-quick.pt", "resume-fct.pt"}
    code, _, error = run(capsys, *arguments, "--out", str(out), "--budget", "0.02", *QUICK)
    assert code == 3
    assert "resumed after epoch" in error
    assert not list(out.glob("resume*"))


def test_what_cannot_work_is_said_before_any_work(
    tmp_path: Path, poisoned: Path, victim: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = refuse(capsys, "sift", "--data", str(poisoned), "--clean-out", str(poisoned), "--out", str(tmp_path / "o"))
    assert "is there and not empty" in words
    words = refuse(capsys, "sift", "--data", str(poisoned), "--out", str(victim), *QUICK)
    assert "holds a finished result" in words
    words = refuse(capsys, "sift", "--data", str(poisoned), "--arch", "ResNet18")
    assert "name the file with --model" in words
    words = refuse(capsys, "sift", "--data", str(poisoned), "--method", "FCTT")
    assert "did you mean FCT?" in words
    assert not (tmp_path / "o").exists()
