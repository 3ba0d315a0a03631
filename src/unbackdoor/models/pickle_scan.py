"""A look at the pickle inside a PyTorch file without running it.

`torch.load(weights_only=True)` keeps a file from running code, but not from asking for a terabyte
(`bytearray(10**12)` is allowed there). So a file is loaded only if its pickle keeps to the few instructions
and names that `torch.save` writes for weights, and if every storage that it names is in the archive with just
the size that it declares.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections import deque
from collections.abc import Mapping

from unbackdoor.errors import CheckpointError
from unbackdoor.models.pickle_weight import Weights
from unbackdoor.text import clean_text

# A table of 100,000 poisoned images, as BackdoorBench stores them beside the weights, takes about 20 MB.
MAX_PICKLE_BYTES = 64 * 2**20

# Bytes per element of the storages that weights have.
_STORAGES = {
    "torch DoubleStorage": 8, "torch FloatStorage": 4, "torch HalfStorage": 2, "torch BFloat16Storage": 2,
    "torch LongStorage": 8, "torch IntStorage": 4, "torch ShortStorage": 2, "torch CharStorage": 1,
    "torch ByteStorage": 1, "torch BoolStorage": 1,
}  # fmt: skip
_ENCODE = "_codecs encode"
# Each of these makes a value no larger than its arguments. numpy's names reach our own stand-ins (see
# torch_file.py).
_GLOBALS = frozenset(
    {
        *_STORAGES,
        _ENCODE,  # bytes, as protocol 2 writes them; only with the codec latin1
        "torch._utils _rebuild_tensor_v2",  # a view of a storage that was loaded
        "torch._utils _rebuild_parameter",
        "torch Size",
        "torch device",
        "collections OrderedDict",
        "__builtin__ set",
        "collections Counter",  # schedulers in training checkpoints
        "numpy dtype",
        "numpy ndarray",
        "numpy.core.multiarray scalar",
        "numpy.core.multiarray _reconstruct",
        "numpy._core.multiarray scalar",
        "numpy._core.multiarray _reconstruct",
    }
)
_PUSHED_AS_IS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1"})
_OTHERS = frozenset(
    {
        "PROTO", "STOP", "MARK", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "BINFLOAT", "NONE", "NEWTRUE",
        "NEWFALSE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE", "BUILD", "SETITEM", "SETITEMS",
        "APPEND", "APPENDS", "BINPERSID",
    }
)  # fmt: skip
_ADVICE = "; load it where you trust it and save only model.state_dict()"


class _Global(str):
    """The name of a global, told apart from a text that reads the same."""

    __slots__ = ()


def scan_pickle(data: bytes, records: Mapping[str, int]) -> frozenset[str]:
    """Check a pickle's instructions, names and storages.

    Args:
        data: the pickle.
        records: the archive's storages, key to size in bytes.

    Returns:
        The keys of the storages that the pickle uses.

    Raises:
        CheckpointError: it asks for anything but weights and plain values, a storage is not in the archive
            with the declared size, it makes far more of its bytes than weights need, or there are bytes after
            its end.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle is {len(data)} bytes long; at most {MAX_PICKLE_BYTES} are accepted{_ADVICE}")
    try:
        return _Scan(records).run(data)
    except (ValueError, KeyError, IndexError, OverflowError, struct.error) as error:
        raise CheckpointError(f"its pickle is damaged: {clean_text(str(error), 80)}; copy it again") from error


class _Scan:
    """One pass over a pickle's instructions.

    The pickle is not run. It is enough to know the last few values pushed, since `torch.save` always writes
    the parts of a storage, and the arguments of an encoding, one right after the other; a pickle that hides
    them is refused.
    """

    def __init__(self, records: Mapping[str, int]) -> None:
        self.records = records
        self.recent: deque[object] = deque(maxlen=8)
        self.memo: dict[int, object] = {}
        self.unsafe: set[str] = set()
        self.used: set[str] = set()
        self.encodings = 0
        self.weights = Weights()

    def run(self, data: bytes) -> frozenset[str]:
        end = 0
        for operation, argument, position in pickletools.genops(io.BytesIO(data)):
            self._step(operation.name, argument)
            if not self.unsafe:
                self.weights.step(operation.name, argument)
            end = (position or 0) + 1
        if self.unsafe:
            names = [clean_text(name.replace(" ", "."), 60) for name in sorted(self.unsafe)]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise CheckpointError(
                f"it is more than weights: opening it would run {', '.join(names[:3])}{more} (a whole"
                f" pickled module, or an attack){_ADVICE}"
            )
        if self.encodings:
            raise CheckpointError(f"its pickle encodes text in an unusual way{_ADVICE}")
        if end != len(data):
            raise CheckpointError(f"its pickle has bytes after its end{_ADVICE}")
        return frozenset(self.used)

    def _step(self, name: str, argument: object) -> None:
        if name in {"BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = self.recent[-1]  # type: ignore[index]
            return
        value: object = name
        if name in _PUSHED_AS_IS:
            value = argument if isinstance(argument, int) else f"={argument}"
        elif name in {"BINGET", "LONG_BINGET"}:
            value = self.memo[argument]  # type: ignore[index]
        elif name == "GLOBAL":
            value = _Global(argument)
            if value not in _GLOBALS:
                self.unsafe.add(value)
        elif name in {"STACK_GLOBAL", "INST"}:
            self.unsafe.add(str(argument or "code by a computed name"))
        elif name not in _OTHERS and not self.unsafe:
            raise CheckpointError(f"its pickle uses the instruction {name}, which torch.save does not write{_ADVICE}")
        if name == "BINPERSID":
            self._storage()
        elif name == "REDUCE" and self._encodes_latin1():
            self.encodings -= 1
        self.recent.append(value)
        self.encodings += isinstance(value, _Global) and value == _ENCODE

    def _encodes_latin1(self) -> bool:
        """Return whether the last four values call `encode` on a text with the codec latin1.

        Other codecs can take hours over a long text, so there must be a call like this for each `encode`.
        """
        if len(self.recent) < 4:
            return False
        function, text, codec, end = tuple(self.recent)[-4:]
        right = isinstance(function, _Global) and function == _ENCODE and (codec, end) == ("=latin1", "TUPLE2")
        return right and isinstance(text, str) and text.startswith("=")

    def _storage(self) -> None:
        """Check the storage that the last seven values make: ("storage", its type, key, device, elements)."""
        if len(self.recent) < 7:
            raise CheckpointError(f"its pickle describes a storage in an unusual way{_ADVICE}")
        mark, word, kind, key, _, elements, end = tuple(self.recent)[-7:]
        if kind in self.unsafe:
            shown = clean_text(str(kind).replace(" ", "."), 60)
            raise CheckpointError(f"it stores numbers of type {shown}; save the weights as float32")
        right = (mark, word, end) == ("MARK", "=storage", "TUPLE") and isinstance(kind, _Global)
        if not right or kind not in _STORAGES or not isinstance(key, str) or type(elements) is not int:
            raise CheckpointError(f"its pickle describes a storage in an unusual way{_ADVICE}")
        found = self.records.get(key[1:])
        if found != elements * _STORAGES[kind]:
            held = "is not in the archive" if found is None else f"holds {found} bytes"
            raise CheckpointError(
                f"the pickle declares {elements} elements ({elements * _STORAGES[kind]} bytes) in the storage"
                f" {clean_text(key[1:], 20)}, which {held}; copy or save it again"
            )
        self.used.add(key[1:])
