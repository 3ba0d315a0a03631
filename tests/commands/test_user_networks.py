"""Networks of the user's own on the command line: their code enters by the words that were typed alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.commands.networks import TINY, write_plain_state
from tests.commands.test_cli import refuse, run
from tests.commands.test_mark import BRIEFLY, THREADS, mark_in
from unbackdoor.models import load_model

SHORT = ["--data", "digits", "--recipe.epochs", "1", "--recipe.low_resolution", "0", *THREADS]


@pytest.mark.parametrize("command", ["scan", "purify", "evaluate"])
def test_a_bare_state_dict_takes_classes_and_size_from_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    model, out = write_plain_state(tmp_path / "weights.pt"), tmp_path / "out"
    code, _, err = run(capsys, command, "--model", str(model), "--arch", TINY, *BRIEFLY[command], "--out", str(out))
    assert code == (3 if command == "scan" else 0), err
    assert "the file does not tell classes and size of images: taken from digits/" in (out / "report.html").read_text()


def test_a_bare_state_dict_that_does_not_fit_the_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import numpy as np

    model = write_plain_state(tmp_path / "weights.pt")
    np.savez(tmp_path / "few.npz", images=np.zeros((40, 32, 32), np.uint8), labels=np.arange(40) % 4)
    words = ["scan", "--model", str(model), "--arch", TINY, "--clean", str(tmp_path / "few.npz")]
    assert "do not fit" in refuse(capsys, *words)


def test_attack_train_and_evaluate_with_a_network_of_the_users_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("train", "attack"):
        code, _, err = run(capsys, command, "--model", TINY, *SHORT, "--out", str(tmp_path / command))
        assert code == 0, err
        loaded = load_model(tmp_path / command / "model.safetensors", arch=TINY)
        assert loaded.network.description.architecture == TINY
        assert json.loads((tmp_path / command / "run.json").read_text())["options"]["model"] == {"name": TINY}
    assert mark_in(tmp_path / "attack" / "model.safetensors")["attack"]["name"] == "BadNets"
    words = ["--model", str(tmp_path / "train" / "model.safetensors"), "--arch", TINY, "--data", "digits", *THREADS]
    words += ["--attack", str(tmp_path / "attack"), "--out", str(tmp_path / "evaluation"), "--json"]
    code, out, err = run(capsys, "evaluate", *words)
    assert code == 0, err
    assert "der" in json.loads(out), "the attacked model was opened too"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "tests.no_such_module:net"], "cannot import"),
        (["--model", "tests.commands.networks:no_such"], "no function"),
        (["--model", TINY, "--model.hidden", "4"], "unknown option --model.hidden"),
        (["--attack", TINY], "unknown attack"),
    ],
)
def test_code_that_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert says in refuse(capsys, "attack", "--data", "digits", "--out", str(tmp_path / "o"), *words)


@pytest.mark.parametrize(
    ("command", "content", "says"),
    [
        ("train", "data: digits\nout: o\nmodel: unbackdoor_evil:net\n", "command line"),
        ("attack", "data: digits\nout: o\nmodel:\n  name: unbackdoor_evil:net\n", "command line"),
        ("scan", "model: m.safetensors\nclean: digits\narch: unbackdoor_evil:net\n", "command line"),
        ("scan", "model: m.safetensors\nclean: digits\narc: unbackdoor_evil:net\n", "unknown option --arc"),
        ("purify", "model: m.safetensors\nclean: digits\narch: unbackdoor_evil:net\n", "command line"),
        ("evaluate", "model: m.safetensors\ndata: digits\narch: unbackdoor_evil:net\n", "command line"),
    ],
)
def test_a_configuration_file_never_imports_a_network(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    content: str,
    says: str,
) -> None:
    (tmp_path / "unbackdoor_evil.py").write_text("net = None")
    (tmp_path / "run.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert says in refuse(capsys, command, "--config", "run.yaml")
    assert "unbackdoor_evil" not in sys.modules


def test_code_that_was_typed_wins_over_a_configuration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("data: digits\nmodel: WRN16x1\nrecipe:\n  epochs: 1\n")
    words = ["--config", str(tmp_path / "run.yaml"), "--model", TINY, *SHORT[4:], "--out", str(tmp_path / "o")]
    assert run(capsys, "train", *words)[0] == 0
    # Both would train.
    assert json.loads((tmp_path / "o" / "run.json").read_text())["options"]["model"]["name"] == TINY
