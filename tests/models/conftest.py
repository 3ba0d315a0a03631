"""Fixtures of the tests of models."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of a user's own."""
    (tmp_path / "user_networks.py").write_text(
        """
from torch import nn
def tiny(channels, classes, hidden=3):
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(channels, hidden, 1), pool, nn.Linear(hidden, classes))
def nothing(channels, classes):
    return None
def picky(channels, classes):
    raise ValueError("these images are not for me")
number = 3
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "user_networks"
