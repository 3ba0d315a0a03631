"""A repair is never lost, and its record says all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.networks import tiny_network
from tests.commands.test_cli import SHORT_SCAN, run
from tests.commands.test_mark import QUICK_REPAIR
from unbackdoor.models import load_model, save_model

FT = ["--method", "FT", "--method.epochs", "1"]


def test_a_repair_is_saved_though_the_result_cannot_be_scanned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 32, 32), np.uint8)
    np.savez(tmp_path / "two.npz", images=images, labels=np.arange(40) % 2)
    save_model(tmp_path / "m.safetensors", tiny_network(2), provenance={})
    words = ["purify", "--model", str(tmp_path / "m.safetensors"), "--clean", str(tmp_path / "two.npz"), *FT]
    code, out, err = run(capsys, *words, *SHORT_SCAN, "--json", "--out", str(tmp_path / "o"))
    assert code == 0, err
    load_model(tmp_path / "o" / "model.safetensors")
    result, record = json.loads(out), json.loads((tmp_path / "o" / "run.json").read_text())
    assert result["rescan"] is record["rescan"] is None
    assert "needs at least 3" in result["not_rescanned"]
    assert record["not_rescanned"] == result["not_rescanned"]
    assert "There is no scan of the repaired model" in (tmp_path / "o" / "report.html").read_text()
    _, out, _ = run(capsys, *words, *SHORT_SCAN, "--out", str(tmp_path / "table"))
    assert "needs at least 3" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize("part", ["report.page.write_report", "commands.purify.repair_charts"])
def test_a_repair_is_saved_though_its_page_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    from unbackdoor.errors import InputError

    def fail(*_: object) -> None:
        raise InputError("no drawing")

    monkeypatch.setattr(f"unbackdoor.{part}", fail)
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    words = ["purify", "--model", str(tmp_path / "m.safetensors"), "--clean", "digits", *QUICK_REPAIR]
    code, out, err = run(capsys, *words, "--out", str(tmp_path / "o"))
    assert code == 0, err
    assert "no drawing" in out
    load_model(tmp_path / "o" / "model.safetensors")


def test_a_repair_without_out_goes_to_a_folder_named_after_the_model_and_records_the_scanner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    digest = save_model("m.safetensors", tiny_network(), provenance={})
    assert digest == hashlib.sha256(Path("m.safetensors").read_bytes()).hexdigest()
    code, _, err = run(capsys, "purify", "--model", "m.safetensors", "--clean", "digits", *FT, *SHORT_SCAN)
    assert code == 0, err
    folder = Path("runs") / f"purify-{digest[:8]}"
    load_model(folder / "model.safetensors")
    options = json.loads((folder / "run.json").read_text())["options"]
    assert options["scanner"]["name"] == "NeuralCleanse"
    assert options["scanner"]["steps"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "FT"], "FT needs clean samples; give a few hundred with --clean DATA"),
        (["--method", "EP", "--clean", "digits"], "EP needs the data that the model was trained on; give them with"),
    ],
)
def test_missing_data_are_said_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    code, _, err = run(capsys, "purify", "--model", str(tmp_path / "none"), *words, "--out", str(tmp_path / "o"))
    assert code == 2
    assert sentence in " ".join(err.split())
    assert not (tmp_path / "o").exists()


def test_methods_that_need_no_clean_samples_run_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    words = ["purify", "--model", str(tmp_path / "m.safetensors"), *SHORT_SCAN, "--json"]
    for method, given in (("CLP", []), ("EP", ["--untrusted", "digits"])):
        folder = tmp_path / method
        code, out, err = run(capsys, *words, "--method", method, *given, "--out", str(folder))
        assert code == 0, err
        load_model(folder / "model.safetensors")
        result, record = json.loads(out), json.loads((folder / "run.json").read_text())
        assert result["clean_accuracy"] is None
        assert "clean samples" in result["not_rescanned"]
        assert len(record["inputs"]) == 1 + len(given) // 2
        assert "Accuracy on the clean samples" not in (folder / "report.html").read_text()
