"""Malicious, broken and foreign model files, made here; opening one wrongly would make a canary file.

`make(folder)` writes them and returns, for each, its path and words that the refusal must contain.
"""

from __future__ import annotations

import bz2
import gzip
import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import nn

from .corpus_weights import headers, notes, tensors
from .files import rezip, small_network, torch_bytes

CANARY = "canary"


class Attack:
    """Pickles to a call; the call would make the canary file."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class WholeModule(nn.Linear):
    """A module of the user's own."""


def make(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write the corpus into `folder` and return name to (path, words that the refusal contains)."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, tuple[bytes, str]] = {}
    for part in (_pickles, _zips, _other_formats):
        files |= part(folder / CANARY)
    files |= tensors() | headers() | notes()
    made = {}
    for name, (content, words) in files.items():
        (folder / name).write_bytes(content)
        made[name] = (folder / name, words)
    return made | _no_files(folder)


def _pickles(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Attempts to have code run."""
    touch = Attack(os.system, f"touch {canary}")
    weights = small_network().body.state_dict()
    legacy: dict[str, Any] = {"_use_new_zipfile_serialization": False}
    files = {
        "system.pt": (torch_bytes(touch), "would run"),
        "system_beside_weights.pt": (torch_bytes({"state_dict": weights, "extra": touch}), "posix.system"),
        "system_as_weight.pt": (torch_bytes({**weights, "fc.bias": touch}), "would run"),
        "eval.pt": (torch_bytes(Attack(eval, f"open({str(canary)!r}, 'w')")), "eval"),
        "getattr.pt": (torch_bytes(Attack(getattr, Attack(__import__, "os"), "system")), "would run"),
        "indirect.pt": (
            torch_bytes(Attack(torch.utils.collect_env.run, f"touch {canary}")),
            "collect_env.run",
        ),
        "numpy_load.pt": (torch_bytes(Attack(np.load, str(canary), None, True)), "would run"),
        "bytearray_bomb.pt": (torch_bytes(Attack(bytearray, 10**12)), "bytearray"),
        "whole_module.pt": (torch_bytes(WholeModule(2, 2)), "WholeModule"),
        "hidden_name.pt": (
            with_pickle(b"\x80\x04\x8c\x02os\x8c\x06system\x93)R."),
            "torch.save does not write",
        ),
        "legacy.pt": (torch_bytes(weights, **legacy), "legacy PyTorch"),
        "legacy_system.pt": (torch_bytes(touch, **legacy), "legacy PyTorch"),
        "legacy_second_pickle.pt": (torch_bytes(weights, **legacy) + pickle.dumps(touch), "legacy PyTorch"),
        "second_pickle.pt": (with_pickle(b"\x80\x02}.", pickle.dumps(touch, 2)), "after its end"),
        "slow_codec.pt": (
            with_pickle(b"\x80\x02c_codecs\nencode\n", _text("é" * 9), _text("punycode"), b"\x86R."),
            "encodes text",
        ),
        "hidden_codec.pt": (
            with_pickle(b"\x80\x02c_codecs\nencode\n(", _text("x"), _text("punycode"), b"tR."),
            "encodes text",
        ),
        "doubling_key.pt": (with_pickle(b"\x80\x02}", _doubling(40), b"Ns."), "repeats its values"),
        "doubling_call.pt": (with_pickle(b"\x80\x02", _doubling(40), b")R."), "repeats its values"),
        "doubling_call_short.pt": (with_pickle(b"\x80\x02", _doubling(3), b")R."), "calls what is no function"),
        "repeated_value.pt": (
            with_pickle(b"\x80\x02]", _doubling(10), b"a", b"h\x0aa" * 100_000, b"."),
            "repeats its values",
        ),
        "repeated_copies.pt": (
            with_pickle(
                b"\x80\x02]q\1c_codecs\nencode\nq\0",
                _text("x" * 10**5),
                b"q\2X\6\0\0\0latin1q\3",
                b"h\0h\2h\3\x86R" * 10**4,
                b".",
            ),
            "repeats its values",
        ),
        "tuple_key.pt": (with_pickle(b"\x80\x02}J\xff\xff\xff\xff\x85Ns."), "keys that are neither"),
        "tuple_keys.pt": (with_pickle(b"\x80\x02}(K\1NK\2\x85Nu."), "keys that are neither"),
        "tuple_in_set.pt": (with_pickle(b"\x80\x02c__builtin__\nset\n](K\1\x85e\x85R."), "keys that are neither"),
        "pairs_as_state.pt": (
            with_pickle(b"\x80\x02ccollections\nOrderedDict\n)R](](K\1K\2eeb."),
            "keys that are neither",
        ),
        "large_key.pt": (with_pickle(b"\x80\x02}\x8a\x0a", bytes(9), b"\1Ns."), "keys that are neither"),
        "deep_key.pt": (with_pickle(b"\x80\x02})", b"\x85" * 10**6, b"Ns."), "more than 100 deep"),
        "object_array.pt": (
            torch_bytes({"net": weights, "data": np.array([touch], dtype=object)}),
            "would run",
        ),
        "object_array_inert.pt": (torch_bytes({"net": weights, "data": np.array([None])}), "type O8"),
        "joblib.bin": (_joblib(touch), "pickle"),
        "joblib_array.bin": (_joblib({"a": np.arange(99)}), "joblib"),
        "joblib_compressed.bin": (_joblib(touch, compress=3), "joblib"),
    }
    for protocol in range(6):
        # The name promises another format: the content counts.
        files[f"raw_{protocol}.safetensors"] = (pickle.dumps(touch, protocol), "runs code when it is opened")
        files[f"raw_dict_{protocol}.bin"] = (
            pickle.dumps({"a": [touch]}, protocol),
            "runs code when it is opened",
        )
    return files


def _zips(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Archives that are damaged, lie about sizes, or are not PyTorch's."""
    good = torch_bytes(small_network().body.state_dict())
    ones = torch_bytes({"a": torch.ones(4)})
    hidden = torch_bytes(Attack(os.system, f"touch {canary}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), script)
    npz = io.BytesIO()
    np.savez(npz, a=np.array([Attack(os.system, "true")], dtype=object))

    def declare(old: bytes, new: bytes, *more: tuple[bytes, bytes]) -> bytes:
        def change(name: str, content: bytes) -> bytes:
            if name.endswith("data.pkl"):
                for before, after in ((old, new), *more):
                    assert before in content
                    content = content.replace(before, after)
            return content

        return rezip(ones, change)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        repeated = rezip(good, extra={"archive/version": b"3\n"})
    return {
        "cut.pt": (good[: len(good) // 2], "cut off"),
        "cut_by_one.pt": (good[:-1], "cut off"),
        "trailing.pt": (good + hidden[2:], "repeated names|several|damaged|bytes"),
        "trailing_bytes.pt": (good + b"x", "after its end"),
        "before_start.pt": (b"PK\x03\x04" + bytes(60) + good, "before its start|damaged"),
        "compressed.pt": (
            rezip(torch_bytes({"a": torch.zeros(2**20)}), compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "nested_zip.pt": (rezip(good, extra={"archive/data/evil.zip": hidden}), "no part of"),
        "second_folder.pt": (rezip(good, extra={"other/data.pkl": b"\x80\x02}."}), "several top folders"),
        "repeated.pt": (repeated, "repeated names"),
        "missing_storage.pt": (
            rezip(ones, lambda name, content: None if name.endswith("/0") else content),
            "not in the archive",
        ),
        "short_storage.pt": (declare(b"K\x04tq", b"J\x00\x10\x00\x00tq"), "declares 4096 elements"),
        "expanded.pt": (
            declare(b"K\x04\x85", b"J\x00\x10\x00\x10\x85", (b"K\x01\x85", b"K\x00\x85")),
            "declares 268439552 elements",
        ),
        "shape_lie.pt": (declare(b"K\x04\x85", b"K\x05\x85"), "damaged"),
        "negative_stride.pt": (declare(b"K\x01\x85", b"J\xff\xff\xff\xff\x85"), "damaged"),
        "flipped_bit.pt": (_flip(good), "damaged zip"),
        "script.pt": (script.getvalue(), "TorchScript"),
        "exported.pt2": (_zip({"m/archive_format": b"pt2", "m/models/m.json": b"{}"}), "exported program"),
        "exported_old.pt2": (
            _zip({"serialized_exported_program.json": b"{}", "version": b"1"}),
            "exported program",
        ),
        "arrays.npz": (npz.getvalue(), "npz"),
        "model.keras": (_zip({"config.json": b"{}", "model.weights.h5": b""}), "Keras"),
        "office.docx": (_zip({"word/document.xml": b"<a/>"}), "not one of PyTorch's"),
        "empty.zip.pt": (b"PK\x05\x06" + bytes(18), "not known"),
        "no_weights.pt": (torch_bytes([1, 2]), "a list instead of"),
        "no_state.pt": (torch_bytes({"epoch": 3, "best": 0.9}), "none among"),
        "two_states.pt": (
            torch_bytes({"net": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}}),
            "several",
        ),
    }


def _other_formats(canary: Path) -> dict[str, tuple[bytes, str]]:
    """Files that other programs write."""
    npy = io.BytesIO()
    np.save(npy, np.arange(3))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model"))
    pickled = pickle.dumps(Attack(os.system, f"touch {canary}"))
    return {
        "empty.safetensors": (b"", "empty"),
        "array.npy": (npy.getvalue(), "npy"),
        "weights.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        "model.gguf": (b"GGUF\x03" + bytes(99), "GGUF"),
        "model.onnx": (b"\x08\x07\x12\x07pytorch" + bytes(99), "ONNX"),
        "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "TensorFlow Lite"),
        "model.pt.gz": (gzip.compress(pickled), "compressed"),
        "model.pt.bz2": (bz2.compress(pickled), "compressed"),
        "model.tar": (tar.getvalue(), "tar archive"),
        "pointer.safetensors": (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "git lfs pull",
        ),
        "page.safetensors": (b"<!DOCTYPE html><html>not found</html>", "web page"),
        "readme.pt": ("Modèle à télécharger\n".encode(), "text file"),
        "noise.bin": (bytes(range(255, 180, -1)), "format is not known"),
        "zeros.bin": (bytes(1000), "format is not known"),
    }


def _no_files(folder: Path) -> dict[str, tuple[Path, str]]:
    """What is no regular file at all."""
    (folder / "empty_folder").mkdir()
    pickled = folder / "pickled_folder"
    pickled.mkdir()
    (pickled / "config.json").write_text('{"model_type": "vit"}')
    (pickled / "pytorch_model.bin").write_bytes(pickle.dumps(Attack(os.system, f"touch {folder / CANARY}")))
    os.mkfifo(folder / "pipe")
    return {
        "empty_folder": (folder / "empty_folder", "without config.json and model.safetensors"),
        "pickled_folder": (pickled, "without model.safetensors"),
        "pipe": (folder / "pipe", "no regular file"),
        "absent": (folder / "absent.pt", "cannot be read"),
        "device": (Path("/dev/zero"), "no regular file"),
    }


def with_pickle(*parts: bytes) -> bytes:
    """Return a PyTorch file with a pickle of these instructions."""
    new = b"".join(parts)
    return rezip(torch_bytes({}), lambda name, content: new if name.endswith("data.pkl") else content)


def _doubling(times: int) -> bytes:
    """Tuples of two references to the one before: a few bytes, 2^times parts."""
    return b")q\0" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(times))


def _text(text: str) -> bytes:
    content = text.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def _joblib(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(content, buffer, **options)
    return buffer.getvalue()


def _zip(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _flip(data: bytes) -> bytes:
    """Flip a bit in the middle of the largest storage, which the zip file's checksum covers."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content = archive.read(largest)
    at = data.index(content) + len(content) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
