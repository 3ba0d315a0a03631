"""Fixtures for the tests of image data."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _isolated_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache for each test: what another test decoded must not stand in for what this one tests."""
    monkeypatch.setenv("UNBACKDOOR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Attempts to use the network: they raise, and are noted even if somebody swallows what is raised."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        attempts.append(arguments)
        raise OSError("no network in this test")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture
def unpickled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Attempts to unpickle: they raise, and are noted even if somebody swallows what is raised."""
    attempts: list[str] = []

    class Unpickler(pickle._Unpickler):  # type: ignore[name-defined,misc]
        def find_class(self, module: str, name: str) -> Any:
            attempts.append(f"find_class {module}.{name}")
            raise AssertionError(attempts)

    def refuse(*_: Any, **__: Any) -> Any:
        attempts.append("load")
        raise AssertionError(attempts)

    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    return attempts
