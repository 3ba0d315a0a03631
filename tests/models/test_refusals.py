"""No file of the corpus is loaded, none runs code, and each is refused in one sentence that says why."""

from __future__ import annotations

import os
import pickle
import re
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models import load_model, save_model
from unbackdoor.models.limits import MAX_FILE_BYTES

from .corpus import CANARY, make, with_pickle
from .files import small_network, torch_bytes


class Tripped(BaseException):
    """Something that must never happen happened; no `except Exception` can swallow it."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    return make(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def trip_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything raise by which a file could run code or reach the network."""

    def trip(*arguments: object, **options: object) -> None:
        raise Tripped(f"called with {arguments!r}")

    class Unpickler(pickle._Unpickler):  # type: ignore[name-defined]
        __init__ = trip
        find_class = trip
        load = trip

    monkeypatch.setattr(pickle, "load", trip)
    monkeypatch.setattr(pickle, "loads", trip)
    monkeypatch.setattr(pickle, "Unpickler", Unpickler)
    monkeypatch.setattr(pickle._Unpickler, "find_class", trip)  # type: ignore[attr-defined]
    # Not eval and exec: ordinary imports use them. A payload that they ran would leave the canary file.
    for name in ("os.system", "os.popen", "subprocess.Popen", "socket.socket"):
        module, _, function = name.rpartition(".")
        monkeypatch.setattr(f"{module}.{function}", trip)
    monkeypatch.setattr(torch.jit, "load", trip)


def test_the_trip_wire_itself_trips(trip_wire: None) -> None:
    with pytest.raises(Tripped):
        pickle.loads(b"\x80\x02}.")
    with pytest.raises(Tripped):
        subprocess.run(["true"], check=True)
    with pytest.raises(Tripped):
        socket.socket()
    with pytest.raises(Tripped):
        torch.load(__file__, weights_only=False)


def test_every_file_of_the_corpus_is_refused_in_one_sentence_and_runs_nothing(
    corpus: dict[str, tuple[Path, str]], trip_wire: None
) -> None:
    assert len(corpus) > 120
    faults = []
    for name, (path, words) in corpus.items():
        try:
            load_model(path)
            faults.append(f"{name}: was loaded")
        except CheckpointError as error:
            text = str(error)
            if not re.search(words, text):
                faults.append(f"{name}: expected {words!r} in {text!r}")
            if not text.startswith(str(path)) or len(text) > 700 or not text.isprintable():
                faults.append(f"{name}: no clean sentence that names the file: {text!r}")
        except Exception as error:
            faults.append(f"{name}: {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


def test_no_file_of_the_corpus_ran_its_payload(corpus: dict[str, tuple[Path, str]]) -> None:
    folder = corpus["system.pt"][0].parent
    for path, _ in corpus.values():
        with pytest.raises(CheckpointError):
            load_model(path)
    assert not (folder / CANARY).exists()


def test_small_pickles_that_would_take_for_ever_are_refused_at_once(corpus: dict[str, tuple[Path, str]]) -> None:
    start = time.process_time()
    for name in ("doubling_key.pt", "doubling_call.pt", "deep_key.pt", "repeated_copies.pt"):
        with pytest.raises(CheckpointError):
            load_model(corpus[name][0])
    assert time.process_time() - start < 5


def test_a_pickle_of_more_instructions_than_weights_need_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB of empty dictionaries would be 4 GB of memory."""
    monkeypatch.setattr("unbackdoor.models.pickle_weight.MAX_INSTRUCTIONS", 200)
    (tmp_path / "few").write_bytes(torch_bytes({"a": torch.ones(3)}))
    (tmp_path / "many").write_bytes(with_pickle(b"\x80\x02", b"}" * 300, b"."))
    with pytest.raises(CheckpointError, match="more than 200 instructions"):
        load_model(tmp_path / "many")
    with pytest.raises(CheckpointError, match="architecture"):
        load_model(tmp_path / "few")


def test_refusals_of_pickles_say_how_to_convert(corpus: dict[str, tuple[Path, str]]) -> None:
    for name in ("raw_4.safetensors", "legacy.pt", "script.pt", "joblib.bin", "exported.pt2", "arrays.npz"):
        with pytest.raises(CheckpointError, match=r"safetensors\.torch\.save_file\(model\.state_dict\(\)"):
            load_model(corpus[name][0])


def test_a_benign_whole_module_is_refused_with_its_class_named(corpus: dict[str, tuple[Path, str]]) -> None:
    with pytest.raises(CheckpointError, match=r"corpus\.WholeModule.*save only model\.state_dict\(\)"):
        load_model(corpus["whole_module.pt"][0])


def test_a_file_above_the_size_limit_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "huge.pt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)

    def read_nothing(*arguments: object) -> None:
        raise Tripped("a file above the limit was hashed, so it was read")

    monkeypatch.setattr("unbackdoor.models.checkpoint.sha256", read_nothing)
    with pytest.raises(CheckpointError, match="more than the 2147483648 that are accepted"):
        load_model(tmp_path / "huge.pt")


def test_a_file_name_cannot_send_commands_to_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model\x1b]0;owned\x07\x1b[2J\n\u202e.pt"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty") as caught:
        load_model(path)
    assert str(caught.value).isprintable()
    assert "owned" not in str(caught.value)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_the_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    # Between two openings a file can be exchanged; then what was checked is not what is loaded.
    path = tmp_path / "model"
    if kind == "safetensors":
        save_model(path, small_network(), provenance={})
    else:
        path.write_bytes(torch_bytes(small_network().body.state_dict()))
    opened, real = [], os.open

    def counted(name: object, *rest: int) -> int:
        opened.append(str(name))
        return real(name, *rest)  # type: ignore[call-overload, no-any-return]

    def no_open(name: object, *rest: object, **options: object) -> None:
        raise Tripped(f"opened again: {name}")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", counted)
        patch.setattr("builtins.open", no_open)
        load_model(path)
    assert opened == [str(path)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arch": "PreActResnet"}, "did you mean PreActResNet18"),
        ({"arch": "WRN16x1", "arguments": {"depth": 3}}, "no argument 'depth'"),
        ({"mean": (0.1, 0.1, 0.1)}, "mean and std belong together"),
        ({"mean": (0.1,), "std": (0.0,)}, "std must be positive"),
        ({"image_shape": (3, 16)}, "image shape must be three"),
        ({"classes": []}, "class names"),
        ({"arch": "no_such_module_here:net"}, "cannot import"),
        ({"arch": "json:no_such_function"}, "no function"),
        ({"arch": "os.path;evil:x"}, "is no architecture"),
    ],
)
def test_what_the_user_got_wrong_is_an_input_error(tmp_path: Path, options: dict[str, object], words: str) -> None:
    (tmp_path / "model.pt").write_bytes(torch_bytes(small_network().body.state_dict()))
    with pytest.raises(InputError, match=words):
        load_model(tmp_path / "model.pt", **options)  # type: ignore[arg-type]
