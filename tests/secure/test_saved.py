"""A decoder comes back from disk as it was, and a file that holds another one is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.planted import SHAPE, network
from unbackdoor.errors import CheckpointError
from unbackdoor.models.safetensors_file import write_safetensors
from unbackdoor.secure.decoder import Decoder, decoder_for, features_shape
from unbackdoor.secure.saved import KEY, load_decoder, save_part
from unbackdoor.testing.samples import same_state, state_of


def decoder() -> Decoder:
    return decoder_for("6", features_shape(network(0), "6"), SHAPE, 5)


def write(path: Path, state: dict[str, Tensor], note: object) -> Path:
    path.write_bytes(write_safetensors(state, {KEY: note if isinstance(note, str) else json.dumps(note)}))
    return path


NOTE = {"format": 1, "part": "decoder", "facts": {"at": "6"}}


def test_a_decoder_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    ours, path = decoder(), tmp_path / "decoder.safetensors"
    save_part(path, "decoder", ours, {"seconds": float("nan"), "path": tmp_path})
    back = load_decoder(path, network(1))
    assert back is not None
    assert back.at == "6"
    assert not back.training
    assert same_state(state_of(back), state_of(ours))


@pytest.mark.parametrize(
    "note", [{"format": 2, "part": "decoder", "facts": {}}, {"format": 1, "part": "head", "facts": {}}, {}], ids=str
)
def test_a_file_of_another_kind_is_no_decoder(tmp_path: Path, note: object) -> None:
    assert load_decoder(write(tmp_path / "one", decoder().state_dict(), note), network(0)) is None


def test_a_file_without_our_note_is_no_decoder(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(write_safetensors({"a": torch.ones(2)}, {}))
    assert load_decoder(path, network(0)) is None


@pytest.mark.parametrize(
    ("state", "note"),
    [
        (decoder().state_dict(), {**NOTE, "facts": {"at": "9"}}),
        (decoder().state_dict(), {**NOTE, "facts": {"at": "nowhere"}}),
        (decoder().state_dict(), {**NOTE, "facts": {"at": ["6"]}}),
        (decoder().state_dict(), {**NOTE, "facts": {}}),
        (decoder_for("6", (24, 6, 6), (1, 12, 12), 0).state_dict(), NOTE),
        ({"layers.0.weight": torch.ones(2)}, NOTE),
        (decoder().state_dict(), "["),
    ],
    ids=["pooled", "no stage", "no name", "no fact", "grey", "no decoder", "no JSON"],
)
def test_a_decoder_of_something_else_is_refused(tmp_path: Path, state: dict[str, Tensor], note: object) -> None:
    with pytest.raises(CheckpointError, match=r"decoder\.safetensors: "):
        load_decoder(write(tmp_path / "decoder.safetensors", state, note), network(0))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "decoder.safetensors", decoder().state_dict(), NOTE)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is cut off"):
        load_decoder(path, network(0))
