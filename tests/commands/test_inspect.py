"""`unbackdoor inspect`, end to end, on the embedded digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands.networks import TINY, write_plain_state
from tests.commands.test_cli import refuse, run
from tests.report.test_page import Outline
from unbackdoor.cli import main
from unbackdoor.inspect import INSPECTIONS
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
    for first in (["weights"], ["Weights"], ["--inspection", "Weights"]):
        code, out, _ = run(capsys, "inspect", *first, "--help")
        assert code == 0
        assert "--inspection.unlearning_epochs" in out
    code, out, _ = run(capsys, "inspect", "--help")
    assert code == 0
    assert "--inspection.unlearning_epochs" not in out
    assert "Confidence, Confusion, Embedding" in " ".join(out.split())
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


QUICK = [name for name in INSPECTIONS if name != "Weights"]


def test_without_a_name_all_quick_inspections_stand_on_one_page(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(victim / "model.safetensors"), tmp_path / "i"
    words = ["inspect", "--model", model, "--clean", "digits", "--out", str(out), "--clean-size", "120"]
    code, told, err = run(capsys, *words, "--threads", "1", "--attack", str(victim), "--reference", model, "--json")
    assert code == 0, err
    result, record = json.loads(told), json.loads((out / "run.json").read_text())
    assert [name for name in result if name in INSPECTIONS] == QUICK
    assert result["unsuited"] == {}
    assert record["Frequency"] == result["Frequency"]
    assert set(record["options"]) == {"inspection", "attack"}
    assert record["options"]["inspection"]["Frequency"]["bands"] == 8
    for name in ("Confidence", "Activation", "Gradients"):
        assert result[name]["suspect"] == result[name]["reference"], "the reference is the suspect itself"
    assert result["Confidence"]["suspect"]["triggered"]["as_labelled"] > 0.5, "the attack is the model's"
    page = Outline((out / "report.html").read_text())
    titles = [INSPECTIONS[name].title for name in QUICK]
    assert [title for title in titles if title not in page.text] == []
    assert page.text.count("What would be suspicious:") == len(QUICK)
    assert "not whether it is backdoored" in page.text
    assert "bands 8, images 500" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 12 + 4
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "run.json"]


def test_what_a_network_has_not_is_said_and_the_rest_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(write_plain_state(tmp_path / "m.pt"))
    words = ["--model", model, "--arch", TINY, "--clean", "digits", "--clean-size", "60", "--threads", "1"]
    code, told, err = run(capsys, "inspect", *words, "--out", str(tmp_path / "i"), "--json")
    assert code == 0, err
    assert list(json.loads(told)["unsuited"]) == ["Lipschitz"]
    page = Outline((tmp_path / "i" / "report.html").read_text()).text
    assert "Lipschitz bounds of the channels: none, since the bound of a channel" in page
    assert "Without the attack's file" in page
    assert "this network has none" in refuse(capsys, "inspect", "lipschitz", *words, "--out", str(tmp_path / "j"))
    code, told, err = run(capsys, "inspect", "confusion", *words, "--out", str(tmp_path / "k"))
    assert code == 0, err
    assert "get their true class" in " ".join(told.split())


def test_an_attack_on_other_images_and_options_without_a_name_are_refused(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", str(victim / "model.safetensors"), "--clean", "digits", "--out", str(tmp_path / "i")]
    assert "name it with --inspection" in refuse(capsys, "inspect", *words, "--inspection.bands", "4")
    assert "2 bands or more" in refuse(capsys, "inspect", "frequency", *words, "--inspection.bands", "1")
    assert "is no attack file" in refuse(capsys, "inspect", *words, "--attack", str(victim / "model.safetensors"))
    assert not (tmp_path / "i").exists()
