"""`unbackdoor inspect`, end to end, on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.test_cli import refuse, run
from unbackdoor.cli import main
from unbackdoor.training import resume

SHORT = ["--inspection.unlearning_epochs", "2", "--inspection.epochs", "1", "--clean-size", "200", "--threads", "1"]


def words(victim: Path, out: Path, *more: str) -> list[str]:
    model = str(victim / "model.safetensors")
    return ["inspect", "weights", "--model", model, "--clean", "digits", "--out", str(out), *SHORT, *more]


def test_inspect_writes_a_page_with_figures_and_a_record_with_numbers(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = str(victim / "model.safetensors")
    command = words(victim, tmp_path / "i", "--attack", str(victim), "--reference", reference, "--json")
    code, out, err = run(capsys, *command)
    assert code == 0, err
    result = json.loads(out)
    record = json.loads((tmp_path / "i" / "run.json").read_text())
    assert result["suspect"] == record["suspect"]
    assert len(record["suspect"]["layers"]) == 17
    assert {"pearson", "spearman"} <= set(record["suspect"]["layers"]["body.conv1"])
    assert record["gradient_ratio"]["value"] == 1.0, "the reference is the suspect itself"
    assert record["options"]["inspection"]["name"] == "Weights"
    assert record["options"]["attack"]["name"] == "BadNets"
    assert len(record["inputs"]) == 4
    assert len(record["clean_rows"]) == 200
    page = (tmp_path / "i" / "report.html").read_text()
    assert page.count("<figure>") == 5
    assert "not whether it is backdoored" in page
    assert "Layers of the suspect" in page
    assert [path.name for path in sorted((tmp_path / "i").iterdir())] == ["report.html", "run.json"]


def test_the_attack_s_own_file_will_do_and_the_page_is_replaced(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--attack", str(victim / "attack.safetensors")]):
        code, out, err = run(capsys, *words(victim, tmp_path / "i", *more))
        assert code == 0, err
        assert "gradient norm" in out
    assert "overlap" in json.loads((tmp_path / "i" / "run.json").read_text())["suspect"]


def test_an_interrupted_inspection_goes_on(
    victim: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written, command = resume.Resume.write, words(victim, tmp_path / "i")

    def write(self: resume.Resume, state: dict[str, object]) -> None:
        written(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "write", write)
        assert main(command) == 130
    assert "goes on where this one stopped" in capsys.readouterr().err
    assert (tmp_path / "i" / "resume-suspect-clean.pt").exists()
    assert main(command) == 0
    assert main(words(victim, tmp_path / "j")) == 0
    one, other = (json.loads((tmp_path / name / "run.json").read_text())["suspect"] for name in "ij")
    assert one == other


def test_what_is_inspected_stands_first_or_is_an_option(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "did you mean Weights?" in refuse(capsys, "inspect", "wieghts", "--model", "x", "--clean", "digits")
    for first in (["weights"], ["Weights"], ["--inspection", "Weights"], []):
        code, out, _ = run(capsys, "inspect", *first, "--help")
        assert code == 0
        assert "--inspection.unlearning_epochs" in out
    config = tmp_path / "i.yaml"
    config.write_text("inspection:\n  name: Weights\n  epochs: 0\n")
    assert "1 epoch or more, found 1000 and 0" in refuse(
        capsys, *words(victim, tmp_path / "i")[:8], "--config", str(config)
    )


def test_what_does_not_belong_together_is_refused_before_the_work(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "name the folder" in refuse(capsys, *words(victim, tmp_path / "i", "--attack", str(tmp_path / "none")))
    model = str(victim / "model.safetensors")
    assert "is no attack file" in refuse(capsys, *words(victim, tmp_path / "i", "--attack", model))
    assert "holds a finished result" in refuse(capsys, *words(victim, victim))
    assert not (tmp_path / "i").exists()
