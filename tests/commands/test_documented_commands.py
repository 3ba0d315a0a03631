"""The commands in README and docs are such that the command line understands them."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from unbackdoor.cli import GROUPS
from unbackdoor.commands.parsing import parse

ROOT = Path(__file__).parents[2]
BLOCKS = [
    block
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
    for block in re.findall(r"^```(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
]


def commands() -> list[list[str]]:
    """Return the words of each command that stands at the beginning of a line of a block, once."""
    found: dict[tuple[str, ...], None] = {}
    for block in BLOCKS:
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("unbackdoor "):
                words = shlex.split(line, comments=True)[1:]
                found[tuple(words[: words.index(">")] if ">" in words else words)] = None
    return [list(words) for words in found]


COMMANDS = commands()


def test_there_are_commands() -> None:
    assert {words[0] for words in COMMANDS} >= {"attack", "scan", "purify", "evaluate", "sift", "train", "molecules"}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_documented_command_is_understood(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("my_networks.py").write_text("def small(channels, classes): ...\n")
    for block in BLOCKS:
        if file := re.match(r"yaml\n# (\w+\.yaml)\n", block):
            Path(file[1]).write_text(block.removeprefix("yaml"))
    size = 2 if words[0] in GROUPS else 1
    name = " ".join(words[:size])
    call, _ = parse(name, importlib.import_module(f"unbackdoor.commands.{name.replace(' ', '.')}"), words[size:])
    assert call is not None or "--help" in words
