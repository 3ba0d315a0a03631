"""The command line, end to end, on the embedded digits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.commands.conftest import NETWORK, QUICK
from unbackdoor.attacks import Blended
from unbackdoor.cli import COMMANDS, main
from unbackdoor.data import read_images
from unbackdoor.options import options_of
from unbackdoor.scan import mesa, patch_search, sub_models

SHORT_SCAN = [
    *("--scanner", "NeuralCleanse", "--scanner.rounds", "2", "--scanner.steps", "2"),
    *("--clean-size", "60", "--threads", "1"),
]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refuse(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run, and expect one sentence, exit code 2 and no traceback."""
    code, out, err = run(capsys, *words)
    assert code == 2, out + err
    assert out == ""
    assert err.startswith("unbackdoor: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_top_level_help_names_every_command_and_is_quick() -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "unbackdoor.cli", "--help"], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    assert done.returncode == 0
    assert all(command in done.stdout for command in COMMANDS)
    # The promise is one second on an idle machine; what costs is importing torch, which takes longer than this.
    assert seconds < 3


def test_top_level_help_does_not_import_torch() -> None:
    code = "import sys, unbackdoor.cli as c; c.main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"unbackdoor {command}" in out


def test_help_of_a_method_shows_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "attack", "--attack", "SIG", "--help")
    assert "--attack.amplitude" in out
    assert "--attack.size" not in out


def test_methods_lists_everything_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "methods", "--json")
    assert code == 0
    found = json.loads(out)
    assert {"BadNets", "Blended", "SIG"} <= set(found["attack"])
    assert {"FT", "FTSAM", "NPD", "SAU"} <= set(found["purifier"])
    assert {"Consensus", "FCT", "SCAn", "SPECTRE"} <= set(found["sifter"])
    assert {"ScaleUp", "TeCo"} <= set(found["input_filter"])


def test_attack_writes_a_marked_model_and_what_made_it(victim: Path) -> None:
    with safe_open(victim / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["unbackdoor"])
    assert metadata["backdoored"]["attack"]["name"] == "BadNets"
    record = json.loads((victim / "run.json").read_text())
    assert record["evaluation"]["asr"]["value"] > 0.5
    assert record["runtime"]["seed"] == "0"
    assert record["options"]["model"] == {"name": "PreActResNet18", "width": 8}
    assert metadata["provenance"]["options"]["model"] == record["options"]["model"]
    assert "Options: model" in (victim / "report.html").read_text()
    assert (victim / "report.html").stat().st_size > 1000
    assert not list(victim.glob("*.partial")) + list(victim.glob("resume*"))


def test_train_writes_an_unmarked_model_and_what_made_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "digits", "--model", "WRN16x1", "--recipe.epochs", "1", *QUICK[2:]]
    assert run(capsys, *words, "--out", str(tmp_path))[0] == 0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["unbackdoor"])["backdoored"] is None
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["options"]["model"] == {"name": "WRN16x1", "width": 16}, "defaults too: they may change"
    assert "Options: model" in (tmp_path / "report.html").read_text()


def test_scan_purify_and_evaluate_follow_each_other(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(victim / "model.safetensors")
    before = Path(model).read_bytes()
    code, out, _ = run(
        capsys,
        "scan",
        "--model",
        model,
        "--clean",
        "digits",
        "--out",
        str(tmp_path / "scan"),
        "--json",
        *SHORT_SCAN,
    )
    scan = json.loads(out)
    assert code == scan["exit_code"] == 3
    # Two rounds of two steps find too few triggers to compare classes.
    assert scan["backdoored"] is None
    assert scan["marked"] is True
    assert scan["marked_repaired"] is False
    assert scan["calibrated"] is False
    assert len(scan["anomaly"]) == 10
    repaired = tmp_path / "repaired"
    code, out, _ = run(
        capsys,
        *["purify", "--model", model, "--clean", "digits", "--method", "FT", "--method.epochs", "2"],
        *["--out", str(repaired), "--json", *SHORT_SCAN],
    )
    assert code == 0
    assert json.loads(out)["rounds"] == 2
    assert Path(model).read_bytes() == before
    clean = read_images("digits", "train")
    clean = clean.subset(torch.tensor(json.loads((repaired / "run.json").read_text())["clean_rows"]))
    assert json.loads((repaired / "run.json").read_text())["inputs"][f"clean: {clean.name}"] == clean.digest(), (
        "no test image"
    )
    code, out, _ = run(
        capsys,
        *[
            "evaluate",
            "--model",
            str(repaired / "model.safetensors"),
            "--attack",
            str(victim),
            "--data",
            "digits",
        ],
        *["--out", str(tmp_path / "evaluation"), "--json", "--threads", "1"],
    )
    assert code == 0
    result = json.loads(out)
    assert 0 <= result["der"] <= 1
    record = json.loads((victim / "run.json").read_text())
    assert result["before"]["asr"]["value"] == pytest.approx(record["evaluation"]["asr"]["value"], abs=0.02)


def test_a_scan_by_mesa_shows_the_triggers_that_it_learned_and_its_repair_scans_by_itself(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesa, "SCREENING_STEPS", 2)
    for module in (patch_search, sub_models):
        monkeypatch.setattr(module, "JUDGED", 16)
    model = ["--model", str(victim / "model.safetensors"), "--clean", "digits", *SHORT_SCAN[6:]]
    short = ["--scanner", "MESA", "--scanner.steps", "2", "--scanner.hidden", "8", "--scanner.sizes", "[2, 3]"]
    code, out, _ = run(capsys, "scan", *model, *short, "--out", str(tmp_path / "scan"), "--json")
    scan = json.loads(out)
    assert code == scan["exit_code"]
    assert scan["calibrated"] is False
    assert scan["trigger_side"] in (2, 3)
    assert len(scan["anomaly"]) == len(scan["screening"]["2"]) == 10
    assert [len(one["success"]) for one in scan["distributions"]] == [3, 3, 3]
    page = (tmp_path / "scan" / "report.html").read_text()
    assert "Triggers that were learned" in page
    assert "in two dimensions" in page
    code, out, _ = run(
        capsys,
        *["purify", *model, "--method", "MESA", "--method.steps", "2", "--method.epochs", "1", "--rescan", "false"],
        *["--out", str(tmp_path / "repaired"), "--json"],
    )
    assert code == 0
    assert "MESA" in (tmp_path / "repaired" / "report.html").read_text()
    assert "99 pixels does not fit" in refuse(capsys, "scan", *model, "--scanner", "MESA", "--scanner.sizes", "[99]")


def test_purified_model_names_its_parent(victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import hashlib

    run(
        capsys,
        *["purify", "--model", str(victim / "model.safetensors"), "--clean", "digits", "--method", "FT"],
        *["--method.epochs", "1", "--rescan", "false", "--out", str(tmp_path / "r"), *SHORT_SCAN[6:]],
    )
    with safe_open(tmp_path / "r" / "model.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()["unbackdoor"])
    parent = hashlib.sha256((victim / "model.safetensors").read_bytes()).hexdigest()
    assert metadata["provenance"]["parent"] == parent


def test_interrupted_attack_goes_on_to_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.training import resume

    words = ["attack", "--data", "digits", "--attack", "BadNets", *NETWORK, "--recipe.epochs", "2", *QUICK[2:], "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    written = resume.Resume.write
    count = 0

    def write(self: resume.Resume, state: dict[str, object]) -> None:
        nonlocal count
        written(self, state)
        count += 1
        if count == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resume.Resume, "write", write)
        assert main([*words, str(tmp_path / "parts")]) == 130
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert (tmp_path / "parts" / "resume.pt").exists()
    assert main([*words, str(tmp_path / "parts")]) == 0
    with (
        safe_open(tmp_path / "parts" / "model.safetensors", "pt") as ours,
        safe_open(tmp_path / "whole" / "model.safetensors", "pt") as theirs,
    ):
        assert all(torch.equal(ours.get_tensor(name), theirs.get_tensor(name)) for name in theirs.keys())  # noqa: SIM118


def test_configuration_file_gives_options_and_the_command_line_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "data: digits\nseed: 3\nattack:\n  name: Blended\n  alpha: 0.3\nmodel:\n  name: WRN16x1\n"
        "recipe:\n  epochs: 1\n  low_resolution: 0.0\nthreads: 1\n"
    )
    code, _, err = run(capsys, "attack", "--config", str(config), "--attack.alpha=0.4", "--out", str(tmp_path / "o"))
    assert code == 0, err
    record = json.loads((tmp_path / "o" / "run.json").read_text())
    assert record["options"]["attack"] == options_of(Blended(alpha=0.4))
    assert record["runtime"]["seed"] == "3"


def test_configuration_file_never_imports_what_it_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    config = tmp_path / "run.yaml"
    config.write_text("data: digits\nattack:\n  class_path: evil.Attack\n")
    refuse(capsys, "attack", "--config", str(config), "--out", str(tmp_path / "o"))
    config.write_text("data: digits\nattack: !!python/object/apply:os.system ['true']\n")
    assert "cannot understand the tag" in refuse(
        capsys, "attack", "--config", str(config), "--out", str(tmp_path / "o")
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["scna"], "did you mean scan?"),
        (["attack", "--attack", "BadNet"], "did you mean BadNets?"),
        (["purify", "--method", "SUA"], "did you mean SAU?"),
        (["attack", "--atack.target", "1"], "did you mean --attack.target?"),
        (["scan", "--clean", "digits"], "model"),
        (["attack", "--data", "digits", "--out", "x", "--seed", "many"], "seed"),
        (["attack", "--data", "digits", "--out", "x", "--seed", "-1"], "a seed lies between 0 and"),
        (["attack", "--data", "no/such/folder", "--out", "x"], "no/such/folder"),
        (
            ["attack", "--data", "digits", "--out", "x", "--attack.target", "10"],
            "target class 10 is out of range",
        ),
        (["attack", "--data", "digits", "--out", "x", "--attack.poison_rate", "1.5"], "poison rate"),
        (["scan", "--model", "nothing.safetensors", "--clean", "digits"], "nothing.safetensors"),
        (["attack", "--config", "no.yaml"], "no.yaml"),
        (["attack", "--data"], "data"),
    ],
)
def test_bad_use_is_one_sentence_and_leaves_nothing(
    words: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refuse(capsys, *words)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_model_for_other_images_or_classes_is_refused(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    model = str(victim / "model.safetensors")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "color.npz",
        images=rng.integers(0, 255, (40, 32, 32, 3), np.uint8),
        labels=np.arange(40) % 10,
    )
    assert "3 x 32 x 32" in refuse(capsys, "scan", "--model", model, "--clean", str(tmp_path / "color.npz"))
    np.savez(tmp_path / "few.npz", images=rng.integers(0, 255, (40, 32, 32), np.uint8), labels=np.arange(40) % 4)
    assert "4 classes" in refuse(capsys, "scan", "--model", model, "--clean", str(tmp_path / "few.npz"))


def test_a_finished_result_is_never_overwritten(victim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (victim / "model.safetensors").read_bytes()
    err = refuse(capsys, "attack", "--data", "digits", "--out", str(victim), *NETWORK, *QUICK)
    assert "finished result" in err
    assert (victim / "model.safetensors").read_bytes() == before


def test_an_output_folder_that_cannot_be_made_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    err = refuse(capsys, "attack", "--data", "digits", "--out", str(tmp_path / "file" / "inner"), *NETWORK, *QUICK)
    assert "cannot write" in err


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import errno

    def full(self: Path, payload: bytes) -> int:
        with self.open("wb") as file:
            file.write(payload[: len(payload) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    quick = ["--recipe.epochs", "1", *QUICK[2:]]
    err = refuse(capsys, "attack", "--data", "digits", "--out", str(tmp_path / "o"), *NETWORK, *quick)
    assert "No space left" in err
    assert not [path for path in (tmp_path / "o").iterdir() if path.name != "run.json"]


def test_a_broken_model_file_is_refused(victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (victim / "model.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("this is no checkpoint")
    (tmp_path / "pickle.pt").write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.")
    for name in ("short.safetensors", "text.pt", "pickle.pt"):
        assert name in refuse(capsys, "scan", "--model", str(tmp_path / name), "--clean", "digits")


def test_a_defect_of_ours_never_exits_with_the_code_for_backdoored(monkeypatch: pytest.MonkeyPatch) -> None:
    from unbackdoor.commands import methods

    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(methods, "run", broken)
    assert main(["methods"]) == 2


@pytest.mark.parametrize("code", [None, 0, 1, "words"])
def test_code_that_exits_by_itself_gives_no_verdict(monkeypatch: pytest.MonkeyPatch, code: object) -> None:
    from unbackdoor.commands import methods

    def leave() -> None:
        raise SystemExit(code)

    monkeypatch.setattr(methods, "run", leave)
    assert main(["methods"]) == 2


@pytest.mark.parametrize(
    ("words", "closed"), [(["methods"], "stdout"), (["methods", "--json"], "stdout"), (["scna"], "stderr")]
)
def test_a_reader_that_went_away_gives_no_verdict(words: list[str], closed: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    streams: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    command = [sys.executable, "-m", "unbackdoor.cli", *words]
    done = subprocess.run(command, stdout=streams["stdout"], stderr=streams["stderr"], check=False)
    os.close(writer)
    assert done.returncode == 2
    assert not done.stderr, "no traceback either"


@pytest.mark.parametrize(
    ("words", "streams", "expected"),
    [
        ("--version", ">&-", 0),
        ("scna", "2>&-", 2),
        ("scna", ">&- 2>&-", 2),
        ("--version", ">/dev/full", 2),
        ("scna", "2>/dev/full", 2),
    ],
)
def test_streams_that_cannot_be_written_give_no_verdict(words: str, streams: str, expected: int) -> None:
    """Python's own exit codes for that are 1, which says "backdoored", and 120."""
    command = f"{sys.executable} -m unbackdoor.cli {words} {streams}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert subprocess.run(["sh", "-c", command], check=False, env=environment).returncode == expected


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("seed: 2020-13-45\n", "line 1: cannot understand this value"),
        ("seed: " + "[" * 3000 + "]" * 3000, "config.yaml"),
        ("seed: &x [*x]\n", "repeats itself through aliases"),
        ("seed: &x {a: *x}\n", "repeats itself through aliases"),
        ("a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
            f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdef", "bcdefg")
        ), "repeats itself through aliases"),
        ("- seed\n", "must hold options by name"),
        ("seed: 1\nseed: 2\n", "'seed' stands twice"),
    ],
)  # fmt: skip
def test_hostile_configuration_files_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(content)
    assert words in refuse(capsys, "attack", "--config", str(config), "--out", str(tmp_path / "o"))


def test_a_note_commands_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from unbackdoor.commands.progress import RichProgress

    RichProgress().note("done: \x1b[2J\x1b]0;owned\x07 BadNets")
    assert capsys.readouterr().err == "done: BadNets\n"


def test_progress_that_nobody_reads_is_an_ordinary_error() -> None:
    from unbackdoor.commands.progress import RichProgress

    progress = RichProgress()
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as nowhere:
        progress.console.file = nowhere
        with pytest.raises(BrokenPipeError):
            progress.note("epoch 1")
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


def test_the_advice_of_an_error_arrives_whatever_the_length_of_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("deep" * 40) / ("deeper" * 30) / "model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\x80\x04\x95\x05\x00\x00\x00\x00\x00\x00\x00}\x94.")
    err = refuse(capsys, "scan", "--model", str(path), "--clean", "digits")
    assert err.endswith("save its weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')\n")


def test_a_configuration_file_may_spell_options_with_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "model: no-model.pt\nclean: digits\nclean-size: 60\nscanner:\n  name: NeuralCleanse\n  first-lambda: 0.01\n"
    )
    assert "no-model.pt: cannot be read" in refuse(capsys, "scan", "--config", str(config))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--plan"], ["--plan=true"]),
        (["--plan", "false"], ["--plan", "false"]),
        (["--plan", "--work", "true"], ["--plan=true", "--work", "true"]),
        (["--plan=false", "grid.yaml"], ["--plan=false", "grid.yaml"]),
        (["--store", "--plan"], ["--store", "--plan=true"]),
        ([], []),
    ],
)
def test_a_switch_can_stand_alone(words: list[str], expected: list[str]) -> None:
    from unbackdoor.commands import bench
    from unbackdoor.commands.parsing import _with_values

    assert _with_values(words, bench) == expected
