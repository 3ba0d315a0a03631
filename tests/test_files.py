"""Files are complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from unbackdoor.errors import OutputError
from unbackdoor.files import read_bytes, replacing, sha256, write_bytes, write_json


@pytest.mark.parametrize("payload", [b"", b"abc", bytes(range(256)) * 100])
def test_sha256_is_that_of_hashlib(payload: bytes) -> None:
    assert sha256(payload) == hashlib.sha256(payload).hexdigest()


def test_sha256_of_abc_is_that_of_the_standard() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_written_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_bytes(path, b"content")
    assert path.read_bytes() == b"content"
    assert list(path.parent.iterdir()) == [path], "nothing else is left"


def test_a_regular_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bytes(tmp_path / "file", 5) == read_bytes(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, more than the 4"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices are POSIX's")
def test_what_would_be_read_for_ever_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ValueError, match="no regular file"):
            read_bytes(path, 10)
    with pytest.raises(OSError, match="No such file"):
        read_bytes(tmp_path / "absent", 10)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def half() -> None:
        with replacing(path) as partial:
            partial.write_bytes(b"ne")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_is_not_there_before_the_block_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with replacing(path) as partial:
        partial.write_bytes(b"new")
        assert partial.parent == path.parent, "on the same disk, or it could not be moved at once"
        assert not path.exists()
    assert path.read_bytes() == b"new"


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, payload: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot write .*file: No space left on device; choose a folder"):
        write_bytes(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_are_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "below", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(OutputError, match="cannot write"):
            write_bytes(path, b"content")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_file_has_the_permissions_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "file", b"content")
        assert os.umask(mask) == mask, "the mask is as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_json_is_written_readably_and_comes_back(tmp_path: Path) -> None:
    content = {"name": "é ✓", "rows": [1, 2.5, None, True]}
    write_json(tmp_path / "file", content)
    text = (tmp_path / "file").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert text.count("\n") > 5
    assert text.endswith("}\n")


def test_half_a_character_as_in_the_name_of_a_latin_1_folder_is_written_all_the_same(tmp_path: Path) -> None:
    write_json(tmp_path / "file", ["caf\udce9"])
    assert json.loads((tmp_path / "file").read_text()) == ["caf\udce9"]


def test_content_that_is_no_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "file", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_number_that_json_does_not_have_is_written_as_null(tmp_path: Path) -> None:
    """json.dumps writes NaN and Infinity, which are no JSON: browsers and jq refuse the file."""
    content = {"loss": [0.5, float("nan"), (float("inf"),)], "deep": {"threshold": -float("inf")}, "text": "NaN"}
    write_json(tmp_path / "file", content)
    found = json.loads((tmp_path / "file").read_text(), parse_constant=pytest.fail)
    assert found == {"loss": [0.5, None, [None]], "deep": {"threshold": None}, "text": "NaN"}
    assert content["deep"] == {"threshold": -float("inf")}, "what was given stays as it was"
