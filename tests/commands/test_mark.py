"""A model that we backdoored says so, also after its repair; what else is to be known of a file is on every page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import nn

from tests.commands.test_cli import SHORT_SCAN, run
from tests.models.files import small_network
from unbackdoor.models import LoadedModel, load_model, save_model
from unbackdoor.models.mark import is_repaired, mark_sentence, notes_of, repaired_mark
from unbackdoor.models.preact_resnet18 import PreActResNet18

BACKDOORED = "the file itself says that unbackdoor made it backdoored"
REPAIRED = "the file itself says that it was repaired from a model that unbackdoor backdoored"
THREADS = ["--threads", "1"]
QUICK_REPAIR = ["--method", "FT", "--method.epochs", "1", "--rescan", "false", "--clean-size", "60", *THREADS]


def loaded_with(mark: dict[str, Any] | None, folder: Path) -> LoadedModel:
    save_model(folder / "m.safetensors", small_network(), provenance={}, backdoored=mark)
    return load_model(folder / "m.safetensors")


def mark_in(path: Path) -> Any:
    """Return the mark as other programs read it."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["unbackdoor"])["backdoored"]


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [
        (None, None),
        ({}, BACKDOORED),
        ({"attack": "x"}, BACKDOORED),
        ({"attack": "x", "repaired": False}, BACKDOORED),
        ({"attack": "x", "repaired": "no"}, BACKDOORED),
        ({"attack": "x", "repaired": True}, REPAIRED),
    ],
)
def test_the_sentence_is_that_of_the_mark(tmp_path: Path, mark: dict[str, Any] | None, sentence: str | None) -> None:
    model = loaded_with(mark, tmp_path)
    assert mark_sentence(model) == sentence
    assert is_repaired(model) is (sentence == REPAIRED)
    assert notes_of(model) == ([] if sentence is None else [f"T{sentence[1:]}."])


def test_a_repair_keeps_the_mark_and_makes_none(tmp_path: Path) -> None:
    mark = {"attack": {"name": "BadNets"}}
    once = repaired_mark(mark)
    assert once == {"attack": {"name": "BadNets"}, "repaired": True}
    assert repaired_mark(once) == once
    assert mark == {"attack": {"name": "BadNets"}}
    assert repaired_mark(None) is None


def test_a_repaired_model_names_the_mark_of_its_parent_and_scan_says_so_first(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, once, twice = victim, tmp_path / "once", tmp_path / "twice"
    for before, after in ((parent, once), (once, twice)):
        words = ["purify", "--model", str(before / "model.safetensors"), "--clean", "digits", "--out", str(after)]
        code, out, err = run(capsys, *words, *QUICK_REPAIR)
        assert code == 0, out + err
        assert mark_in(after / "model.safetensors") == {**mark_in(parent / "model.safetensors"), "repaired": True}
    scan = ["scan", "--model", str(once / "model.safetensors"), "--clean", "digits", "--out", str(tmp_path / "scan")]
    _, out, _ = run(capsys, *scan, *SHORT_SCAN)
    assert REPAIRED in " ".join(out.replace("│", " ").split())
    assert out.index("mark") < out.index("verdict")
    assert f"T{REPAIRED[1:]}." in (tmp_path / "scan" / "report.html").read_text()
    _, out, _ = run(capsys, *scan, *SHORT_SCAN, "--json")
    assert json.loads(out)["marked"] is True
    assert json.loads(out)["marked_repaired"] is True


def test_a_repair_of_an_unmarked_model_is_not_marked(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(victim / "model.safetensors")
    save_model(tmp_path / "m.safetensors", model.network, provenance={})
    words = ["purify", "--model", str(tmp_path / "m.safetensors"), "--clean", "digits", "--out", str(tmp_path / "r")]
    assert run(capsys, *words, *QUICK_REPAIR)[0] == 0
    assert mark_in(tmp_path / "r" / "model.safetensors") is None


BRIEFLY = {
    "scan": ["--clean", "digits", *SHORT_SCAN],
    "purify": ["--clean", "digits", *QUICK_REPAIR],
    "evaluate": ["--data", "digits", *THREADS],
}
"""The options of each command that reads a model, for a short run on digits."""


def narrow(channels: int, classes: int) -> nn.Module:
    """Return the victim's network, as code of the user's."""
    return PreActResNet18(channels, classes, width=8)


@pytest.mark.parametrize("command", ["scan", "purify", "evaluate"])
def test_what_was_assumed_of_a_model_is_on_the_page(
    victim: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    words = [command, "--model", str(victim / "model.safetensors"), "--arch", "tests.commands.test_mark:narrow"]
    run(capsys, *words, *BRIEFLY[command], "--out", str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "code is the user&#39;s (tests.commands.test_mark:narrow)" in page
    assert f"{BACKDOORED[1:]}." in page
