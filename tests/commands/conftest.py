"""A small poisoned run, made once through the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from unbackdoor.cli import main

QUICK = [
    "--recipe.epochs",
    "10",
    "--recipe.learning_rate",
    "0.1",
    "--recipe.batch_size",
    "32",
    "--recipe.low_resolution",
    "0",
    "--threads",
    "1",
]
NETWORK = ["--model", "PreActResNet18", "--model.width", "8"]


@pytest.fixture(scope="session")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `unbackdoor attack` on digits."""
    out = tmp_path_factory.mktemp("runs") / "badnets"
    code = main(["attack", "--data", "digits", "--attack", "BadNets", "--out", str(out), *NETWORK, *QUICK])
    assert code == 0
    return out
