"""Whatever bytes a file holds, it is loaded or refused: no other exception, no crash."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unbackdoor.errors import CheckpointError
from unbackdoor.models import load_model
from unbackdoor.models.metadata import KEY, note_of

from .files import rezip, safetensors_bytes, small_network, torch_bytes

FUZZ = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
NETWORK = small_network()
NOTE = note_of(NETWORK.description, {"parent": "x"}, None)
SAFETENSORS = safetensors.torch.save(NETWORK.body.state_dict(), {KEY: NOTE})
TORCH = torch_bytes({"state_dict": NETWORK.body.state_dict(), "epoch": 3})
with zipfile.ZipFile(io.BytesIO(TORCH)) as _archive:
    PICKLE = _archive.read("archive/data.pkl")

edits = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=6)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def edited(data: bytes, changes: list[tuple[int, int]], end: int | None = None) -> bytes:
    copy = bytearray(data)
    for position, value in changes:
        copy[position % (end or len(copy))] = value
    return bytes(copy)


def loads_or_refuses(folder: Path, data: bytes) -> bool:
    path = folder / "fuzzed"
    path.write_bytes(data)
    try:
        load_model(path)
    except CheckpointError as error:
        message = str(error)
    else:
        return True
    assert message.isprintable()
    return False


def test_the_files_that_are_fuzzed_are_good_ones(tmp_path: Path) -> None:
    assert loads_or_refuses(tmp_path, SAFETENSORS)
    assert loads_or_refuses(tmp_path, TORCH)


@FUZZ
@given(edits, st.integers(0, 3))
def test_safetensors_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, int]], where: int) -> None:
    header = 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]
    end = (8, header, header, len(SAFETENSORS))[where]
    loads_or_refuses(tmp_path, edited(SAFETENSORS, changes, end))


@FUZZ
@given(st.integers(0, len(SAFETENSORS) - 1), st.binary(max_size=9))
def test_safetensors_cut_or_continued(tmp_path: Path, cut: int, more: bytes) -> None:
    assert not loads_or_refuses(tmp_path, SAFETENSORS[:cut])
    assert not more or not loads_or_refuses(tmp_path, SAFETENSORS + more)


@FUZZ
@given(st.sampled_from(sorted(json.loads(NOTE)["description"])), values)
def test_notes_with_changed_values(tmp_path: Path, field: str, value: Any) -> None:
    note = json.loads(NOTE)
    note["description"][field] = value
    loads_or_refuses(tmp_path, safetensors.torch.save(NETWORK.body.state_dict(), {KEY: json.dumps(note)}))


@FUZZ
@given(st.dictionaries(st.text(max_size=9), values, max_size=3))
def test_safetensors_headers_of_any_json(tmp_path: Path, header: dict[str, Any]) -> None:
    assert not loads_or_refuses(tmp_path, safetensors_bytes(header, bytes(16)))


@FUZZ
@given(edits)
def test_torch_files_with_changed_bytes(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    loads_or_refuses(tmp_path, edited(TORCH, changes))
    tail = TORCH[-6000:]
    loads_or_refuses(tmp_path, TORCH[:-6000] + edited(tail, changes))


@FUZZ
@given(edits, st.integers(0, len(PICKLE)))
def test_torch_files_with_changed_pickles(tmp_path: Path, changes: list[tuple[int, int]], cut: int) -> None:
    # The checksum is made anew, so that the pickle itself has to be refused.
    for changed in (edited(PICKLE, changes), edited(PICKLE, changes, 300), PICKLE[:cut]):
        data = rezip(TORCH, lambda name, content, new=changed: new if name.endswith("data.pkl") else content)  # type: ignore[misc]
        loads_or_refuses(tmp_path, data)


@FUZZ
@given(
    st.binary(max_size=64),
    st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"\x01\0\0\0\0\0\0\0{", b"<", b"\x08\x07"]),
)
def test_noise_with_and_without_a_familiar_start(tmp_path: Path, noise: bytes, start: bytes) -> None:
    assert not loads_or_refuses(tmp_path, start + noise)


@pytest.mark.parametrize("content", [None, 3, [], [{}], "x", {}, {"model": {}}, {"state_dict": []}, {1: 2}])
def test_torch_files_of_other_content(tmp_path: Path, content: object) -> None:
    assert not loads_or_refuses(tmp_path, torch_bytes(content))
