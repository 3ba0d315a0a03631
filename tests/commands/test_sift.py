"""`unbackdoor sift`, from data on disk to a table, a page and cleaned data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyarrow import parquet

from tests.commands.networks import PIXELS
from tests.commands.test_cli import refuse, run
from tests.sift.spread import FEATURES, TARGET, Spread, away, centres, reader, spread
from unbackdoor.data import ImageSet, read_images
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.models import Network, save_model

QUICK = ["--threads", "1", "--precision", "fp32"]


@pytest.fixture(scope="module")
def planted() -> Spread:
    """Rows of which a fifth of one class lies apart, moves more and has small losses."""
    return spread(1.8 * centres()[TARGET], share=0.2, count=1500)


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """The words that name a network whose features are the pixels."""
    network = reader(0.2 * centres())
    described = replace(network.description, architecture=PIXELS)
    save_model(tmp_path / "model.safetensors", Network(network.body, described), provenance={})
    return ["--model", str(tmp_path / "model.safetensors"), "--arch", PIXELS]


def test_poisoned_rows_are_found_listed_shown_and_left_out(
    tmp_path: Path, planted: Spread, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, out, cleaned = tmp_path / "data", tmp_path / "sifted", tmp_path / "cleaned"
    rows, mask = planted.rows, planted.planted
    write_parquet(source / "train-00000-of-00001.parquet", rows, {"planted": mask})
    write_parquet(source / "test-00000-of-00001.parquet", planted.plain, {"planted": torch.zeros_like(mask)})
    code, printed, _ = run(
        capsys, "sift", "--data", str(source), *model, "--out", str(out), "--clean-out", str(cleaned), "--json", *QUICK
    )
    result = json.loads(printed)
    table = parquet.read_table(out / "suspicion.parquet")
    held = torch.tensor([word == "poisoned" for word in table["suspicion"].to_pylist()])
    assert table["row"].to_pylist() == list(range(len(rows)))
    assert table["label"].to_pylist() == rows.labels.tolist()
    assert code == result["exit_code"] == 1
    assert result["held"]["poisoned"] == int(held.sum())
    assert float((held == mask).float().mean()) > 0.99
    back = read_images(cleaned, "train")
    assert torch.equal(back.images, rows.images[~held])
    assert torch.equal(read_images(cleaned, "test").images, planted.plain.images)
    kept = parquet.read_table(next(cleaned.rglob("train*.parquet")))
    assert kept["planted"].to_pylist() == mask[~held].tolist()
    page = (out / "report.html").read_text()
    assert "look poisoned to Consensus" in page
    assert "Most suspicious of class" in page
    assert page.count("<svg") > 2
    record = json.loads((out / "run.json").read_bytes())
    assert record["suspicion"]["held"] == result["held"]
    assert record["options"]["method"]["name"] == "Consensus"
    assert not list(out.glob("resume*"))


def test_the_same_rows_before_they_were_poisoned_are_not_accused(
    tmp_path: Path, planted: Spread, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path / "data.parquet", planted.plain, {})
    arguments = ["--data", str(tmp_path / "data.parquet"), "--out", str(tmp_path / "sifted"), "--json"]
    code, printed, _ = run(capsys, "sift", *arguments, *model, *QUICK)
    assert code == 0
    assert json.loads(printed)["held"]["poisoned"] == 0
    assert "No evidence of poisoned rows" in (tmp_path / "sifted" / "report.html").read_text()


def test_clean_samples_tell_which_group_is_the_poison(
    tmp_path: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    most, other = spread(0.8 * away(), share=0.7, count=1500), spread(torch.zeros(FEATURES), seed=3)
    write_parquet(tmp_path / "data.parquet", most.rows, {})
    write_parquet(tmp_path / "clean.parquet", other.plain, {})
    arguments = ["--data", str(tmp_path / "data.parquet"), "--method", "SCAn", "--out", str(tmp_path / "sifted")]
    clean = ["--clean", str(tmp_path / "clean.parquet")]
    assert run(capsys, "sift", *arguments, *clean, *model, *QUICK)[0] == 1
    table = parquet.read_table(tmp_path / "sifted" / "suspicion.parquet")
    held = torch.tensor([word == "poisoned" for word in table["suspicion"].to_pylist()])
    assert float((held == most.planted).float().mean()) > 0.99
    inputs = json.loads((tmp_path / "sifted" / "run.json").read_bytes())["inputs"]
    assert set(inputs) == {"data.parquet/any", "model.safetensors", "clean: clean.parquet/train"}


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
    # An earlier answer of the same command is replaced, and what is left of an archive is one.
    more = ["--clean-out", str(tmp_path / "cleaned"), "--json"]
    code, printed, _ = run(capsys, "sift", *arguments, "--out", str(out), "--budget", "0.05", *more, *QUICK)
    result = json.loads(printed)
    assert code == 3
    assert result["cleaned"] == str(tmp_path / "cleaned" / "data.npz")
    assert len(read_images(result["cleaned"], "any")) == 48 - result["held"]["poisoned"] < 48


def test_clean_images_are_refused_where_they_would_do_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = refuse(capsys, "sift", "--data", "digits", "--clean", "digits", "--out", str(tmp_path / "sifted"))
    assert "Consensus uses no clean images; leave --clean out, or choose --method Beatrix or SCAn or STRIP" in words
    assert not list(tmp_path.iterdir())


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
    tmp_path: Path, tiny_images: ImageSet, capsys: pytest.CaptureFixture[str]
) -> None:
    source, taken = tmp_path / "data" / "mine.parquet", tmp_path / "taken"
    write_parquet(source, tiny_images, {})
    taken.mkdir()
    (taken / "model.safetensors").write_bytes(b"somebody's")
    words = refuse(capsys, "sift", "--data", str(source), "--clean-out", str(source.parent))
    assert "is there and not empty" in words
    words = refuse(capsys, "sift", "--data", str(source), "--out", str(taken), *QUICK)
    assert "holds a finished result" in words
    words = refuse(capsys, "sift", "--data", str(source), "--arch", "ResNet18")
    assert "name the file with --model" in words
    words = refuse(capsys, "sift", "--data", str(source), "--method", "FCTT")
    assert "did you mean FCT?" in words
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["data", "taken"]
