"""A command replaces results of its own at most, and never another's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.networks import tiny_network
from tests.commands.test_cli import SHORT_SCAN, refuse, run
from unbackdoor.commands.workspace import report_folder
from unbackdoor.errors import OutputError
from unbackdoor.models import save_model

COMMANDS = {
    "demo": ["demo", "--threads", "1"],
    "scan": ["scan", "--clean", "digits", *SHORT_SCAN],
    "evaluate": ["evaluate", "--data", "digits", "--threads", "1"],
    "train": ["train", "--data", "digits", "--threads", "1"],
    "attack": ["attack", "--data", "digits", "--threads", "1"],
}


def words(command: str, folder: Path) -> list[str]:
    model = ["--model", str(folder / "m.safetensors")] if command in ("scan", "evaluate") else []
    if model:
        save_model(folder / "m.safetensors", tiny_network(), provenance={})
    return [*COMMANDS[command], *model, "--out", str(folder / "o")]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("record", ["unbackdoor purify --model scan", "purify", "", None, 3])
def test_a_result_of_another_command_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, record: object
) -> None:
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"command": record} if record is not None else []))
    (folder / "report.html").write_text("a page")
    before = contents(folder)
    assert "run.json" in refuse(capsys, *words(command, tmp_path))
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["demo", "scan", "evaluate"])
@pytest.mark.parametrize("file", ["model.safetensors", "resume.pt"])
def test_a_folder_with_a_model_or_a_run_that_goes_on_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, file: str
) -> None:
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / file).write_text("something")
    assert file in refuse(capsys, *words(command, tmp_path))
    assert [path.name for path in folder.iterdir()] == [file]


@pytest.mark.parametrize("command", ["scan", "evaluate"])
def test_a_result_of_the_same_command_is_replaced_and_nothing_else_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    first = run(capsys, *words(command, tmp_path))
    (tmp_path / "o" / "notes.txt").write_text("mine")
    (tmp_path / "o" / "report.html").write_text("old")
    assert run(capsys, *words(command, tmp_path))[0] == first[0]
    assert (tmp_path / "o" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "o" / "report.html").stat().st_size > 1000


def test_the_demo_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from unbackdoor.commands import demo
    from unbackdoor.errors import InputError

    def stop(*_: object) -> None:
        raise InputError("stopped before the training")

    folder = tmp_path / "o"
    folder.mkdir()
    for name in ("report.html", "backdoored.safetensors", "thesis.txt"):
        (folder / name).write_text("kept")
    monkeypatch.setattr(demo, "poison_and_train", stop)
    assert "stopped" in refuse(capsys, *words("demo", tmp_path))
    assert (folder / "thesis.txt").read_text() == "kept"


@pytest.mark.parametrize("command", ["train", "attack", "purify", "scan", "evaluate", "demo"])
def test_two_runs_in_one_folder_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    purify = ["purify", "--model", str(tmp_path / "m.safetensors"), "--clean", "digits", "--threads", "1"]
    folder = tmp_path / "o"
    folder.mkdir()
    program = "lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    other = f"import sys, filelock; {program}"
    with subprocess.Popen(
        [sys.executable, "-c", other, str(folder / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        given = [*purify, "--out", str(folder)] if command == "purify" else words(command, tmp_path)
        assert "another run works in" in refuse(capsys, *given)
        assert [path.name for path in folder.iterdir()] == [".lock"]
        process.kill()


def test_a_folder_for_a_report_is_its_runs_alone_until_it_ends(tmp_path: Path) -> None:
    with (
        report_folder(tmp_path, "poison"),
        pytest.raises(OutputError, match="another run works"),
        report_folder(tmp_path, "poison"),
    ):
        pass
    with report_folder(tmp_path, "poison") as folder:
        assert folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_lock_does_not_outlive_its_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither one that ended, nor one that was killed and left its file."""
    folder = tmp_path / "o"
    folder.mkdir()
    (folder / ".lock").touch()
    save_model(tmp_path / "m.safetensors", tiny_network(), provenance={})
    words = ["purify", "--model", str(tmp_path / "m.safetensors"), "--clean", "digits", "--threads", "1"]
    options = [
        "--method",
        "FT",
        "--method.epochs",
        "1",
        "--clean-size",
        "60",
        "--rescan",
        "false",
        "--out",
        str(folder),
    ]
    assert run(capsys, *words, *options)[0] == 0
    assert not (folder / ".lock").exists()
    assert "finished result" in refuse(capsys, *words, *options)
