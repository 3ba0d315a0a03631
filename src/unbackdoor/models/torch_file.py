"""Reading PyTorch's zip files (`torch.save` since 1.6) without running what is in them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from typing import Any

import torch

from unbackdoor.errors import CheckpointError
from unbackdoor.models.limits import MAX_TENSORS
from unbackdoor.models.pickle_scan import scan_pickle
from unbackdoor.models.sniff import CONVERT, REBUILD
from unbackdoor.text import clean_text

_MAX_RECORDS = 2 * MAX_TENSORS
_ENTRY = b"PK\x01\x02"
_SIDE_RECORDS = frozenset({"version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"})
_ADVICE = "; save it again with torch.save(model.state_dict(), path)"


def read_torch(data: bytes) -> object:
    """Return what `torch.save` wrote, as far as it is tensors and plain values.

    numpy scalars come back as Python numbers; numpy arrays, which only the training data beside the weights
    hold, as empty stand-ins.

    Raises:
        CheckpointError: another kind of zip file, one that is damaged or larger unpacked than packed, or a
            pickle that holds more than weights and plain values.
    """
    records = _records(data)
    storages = {
        name.removeprefix("data/"): len(content) for name, content in records.items() if name.startswith("data/")
    }
    used = scan_pickle(records["data.pkl"], storages)
    # PyTorch reads zip files by other code than Python. A fresh archive of the very records that were checked
    # leaves nothing on which the two could differ.
    checked = io.BytesIO()
    with zipfile.ZipFile(checked, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records.items():
            if not name.startswith("data/") or name.removeprefix("data/") in used:
                archive.writestr(f"archive/{name}", content)
    del records
    checked.seek(0)
    try:
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(checked, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    # The unpickler runs over a stranger's bytes: whatever it raises, the file is damaged.
    except Exception as error:
        raise CheckpointError(f"damaged PyTorch file: {clean_text(str(error), 120)}{_ADVICE}") from error


def _records(data: bytes) -> dict[str, bytes]:
    """Return the archive's records by their name below its top folder."""
    end = data[-22:]
    if end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise CheckpointError("the zip file is cut off or has bytes after its end; copy or download it again")
    if data.count(_ENTRY) > _MAX_RECORDS:
        raise CheckpointError(f"the zip file has more than {_MAX_RECORDS} entries{_ADVICE}")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            _check_entries(entries, len(data))
            prefix = entries[0].filename.partition("/")[0] + "/"
            return {entry.filename.removeprefix(prefix): archive.read(entry) for entry in entries}
    except (
        zipfile.BadZipFile,
        ValueError,
        OverflowError,
        NotImplementedError,
        EOFError,
        struct.error,
    ) as error:
        raise CheckpointError(f"damaged zip file: {clean_text(str(error), 100)}; copy it again") from error


def _check_entries(entries: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse other kinds of zip files, compressed ones, and ones that unpack to more than they are."""
    names = [entry.filename for entry in entries]
    _refuse_other_formats(names)
    if len(set(names)) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise CheckpointError(f"the zip file has repeated names or several top folders{_ADVICE}")
    for entry in entries:
        shown, below = clean_text(entry.filename, 60), entry.filename.partition("/")[2]
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise CheckpointError(f"{shown} is compressed or encrypted, which torch.save never does{_ADVICE}")
        folder, _, key = below.rpartition("/")
        if not (below == "data.pkl" or below in _SIDE_RECORDS or (folder == "data" and key.isdecimal())):
            raise CheckpointError(f"it holds {shown}, which is no part of a file of weights{_ADVICE}")
    # Entries that share bytes would make the total larger than the file.
    if sum(entry.file_size for entry in entries) > size:
        raise CheckpointError(f"the zip file unpacks to more bytes than it has{_ADVICE}")
    if min(entry.header_offset for entry in entries) != 0:
        raise CheckpointError(f"the zip file has bytes before its start{_ADVICE}")


def _refuse_other_formats(names: list[str]) -> None:
    """Name the zip files that are no weights, each with its reason."""
    below = {name.partition("/")[2] for name in names}
    if "constants.pkl" in below or any(name.startswith("code/") for name in below):
        raise CheckpointError(f"it is a TorchScript file, which holds code to run; {CONVERT}")
    exported = {"archive_format", "archive_version", "serialized_exported_program.json"}
    if exported & (below | set(names)) or any(name.startswith("models/") for name in below):
        raise CheckpointError(f"it is an exported program (.pt2), which holds a graph and pickles; {CONVERT}")
    if any(name.endswith(".npy") for name in names):
        raise CheckpointError(f"it is a NumPy archive (npz), not a PyTorch model; {CONVERT}")
    if any(name.endswith((".weights.h5", ".h5")) for name in names):
        raise CheckpointError(f"it is a Keras file, not a PyTorch model; {REBUILD}")
    if "data.pkl" not in below:
        raise CheckpointError(f"it is a zip file, but not one of PyTorch's; unpack it, or {CONVERT}")


class _Array:
    """Stands in for a numpy array, and for numpy's way to make one; whatever it is given, it forgets."""

    def __init__(self, *content: object) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        kind = state[2] if isinstance(state, tuple) and len(state) > 2 else None
        if not isinstance(kind, _Type):
            raise CheckpointError(f"its pickle holds a malformed array{_ADVICE}")


class _Type:
    """Stands in for `numpy.dtype`, and refuses types that hold objects."""

    def __init__(self, name: object, *flags: object) -> None:
        if not isinstance(name, str) or len(name) > 16 or name[:1] not in set("biufSU"):
            shown = clean_text(name, 16) if isinstance(name, str) else type(name).__name__
            raise CheckpointError(f"it holds an array of type {shown}, which can hide code{_ADVICE}")
        self.name = name
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"


_FORMATS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip


def _scalar(kind: object, content: object) -> bool | int | float:
    """Return the Python number that a pickled numpy scalar is."""
    if not isinstance(kind, _Type) or kind.name not in _FORMATS or not isinstance(content, bytes):
        raise CheckpointError(f"its pickle holds a malformed number{_ADVICE}")
    value: bool | int | float = struct.unpack(kind.order + _FORMATS[kind.name], content)[0]
    return value


# What numpy's names in a pickle lead to: never numpy itself. `weights_only` calls these by REDUCE and gives
# them their state by BUILD; both can only store or refuse plain values, so nothing in a file reaches numpy's
# own constructors, which would allocate what they are told and unpickle arrays of objects.
_STAND_INS: list[Any] = [
    (_Type, "numpy.dtype"),
    (_Array, "numpy.ndarray"),
    (_Array, "numpy.core.multiarray._reconstruct"),
    (_Array, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
]
