"""How much a pickle makes of its bytes, reckoned without running it.

A pickle can use a value again by a reference of two bytes. Forty tuples of two references each, one upon the
other, are 200 bytes that take 2^40 steps to hash or to print; a long text can be copied by each of a million calls.
So the values on the unpickler's stack are followed by their weight alone, and what references and calls add up to
has a limit, as have the number of instructions and the depth.

Nor may keys be of a kind of which anybody can make millions with one hash (tuples of -1 and -2, numbers that differ by
multiples of 2^61 - 1): a dictionary compares each such key with all others.
"""

from __future__ import annotations

from unbackdoor.errors import CheckpointError

# A result of BackdoorBench with records of 100,000 poisoned images has about 4 million instructions.
MAX_INSTRUCTIONS = 10_000_000
MAX_WEIGHT = 20_000_000
# Python hashes nested tuples by recursion, and has no check there that the stack of the machine lasts.
MAX_DEPTH = 100

# How many values each of these makes parts of another value; None: all since the last mark.
_PARTS = {
    "TUPLE": None, "EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3,
    "APPENDS": None, "APPEND": 1, "SETITEMS": None, "SETITEM": 2, "BUILD": 1,
}  # fmt: skip
_COLLECTIONS = frozenset({"__builtin__ set", "collections Counter", "collections OrderedDict"})
_ADVICE = "; save only model.state_dict()"
_TEXT = 16  # characters that weigh as much as one number


class _Value:
    """What is known of a value: how many parts it has, all told, and how deep they are nested."""

    __slots__ = ("depth", "is_list", "weight")

    def __init__(self, weight: int = 1, depth: int = 0, *, is_list: bool = False) -> None:
        self.weight = weight
        self.depth = depth
        self.is_list = is_list

    def take(self, parts: list[_Value]) -> _Value:
        """Count `parts` as parts of this value."""
        self.weight += sum(part.weight for part in parts)
        self.depth = max([self.depth, *(part.depth + 1 for part in parts)])
        if self.depth > MAX_DEPTH:
            raise CheckpointError(f"its pickle nests values more than {MAX_DEPTH} deep{_ADVICE}")
        return self


class Weights:
    """The unpickler's stack, with weights in place of values; `step` takes one instruction after the other."""

    def __init__(self) -> None:
        self.stack: list[_Value] = []
        self.frames: list[list[_Value]] = []
        self.memo: dict[int, _Value] = {}
        self.plain = _Value()
        self.function = _Value()
        self.collection = _Value()
        self.instructions = 0
        self.repeated = 0

    def step(self, name: str, argument: object) -> None:
        """Follow one instruction.

        Raises:
            CheckpointError: the pickle makes far more than a file of weights does, or calls what is no function.
            IndexError, KeyError: it takes values that are not there.
        """
        self.instructions += 1
        if self.instructions > MAX_INSTRUCTIONS:
            raise CheckpointError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions{_ADVICE}")
        if name in _PARTS:
            parts = self._parts(_PARTS[name])
            # SETITEM's parts come from the top of the stack, the value first.
            keys = parts[1:] if name == "SETITEM" else parts[::2] if name == "SETITEMS" else []
            # A list of pairs in place of a state would make keys too.
            if any(key.depth for key in keys) or (name == "BUILD" and parts[0].is_list):
                raise CheckpointError(f"its pickle has keys that are neither texts nor common numbers{_ADVICE}")
            if "TUPLE" in name:
                self.stack.append(_Value())
            self.stack[-1].take(parts)
        elif name == "MARK":
            self.frames.append(self.stack)
            self.stack = []
        elif name in {"BINPUT", "LONG_BINPUT"}:
            self.memo[argument] = self.stack[-1]  # type: ignore[index]
        elif name in {"BINGET", "LONG_BINGET"}:
            value = self.memo[argument]  # type: ignore[index]
            self._repeat(value.weight)
            self.stack.append(value)
        elif name == "REDUCE":
            given = self.stack.pop()
            self._repeat(given.weight)
            function = self.stack.pop()
            # Anything else would be printed in the unpickler's message.
            if function is not self.function and function is not self.collection:
                raise CheckpointError(f"its pickle calls what is no function{_ADVICE}")
            # The arguments are a tuple of one list or dictionary of plain values, or nothing.
            if function is self.collection and (given.depth > 2 or given.is_list):
                raise CheckpointError(f"its pickle has keys that are neither texts nor common numbers{_ADVICE}")
            self.stack.append(_Value(given.weight))
        elif name == "BINPERSID":
            self.stack[-1] = self.plain
        elif name not in {"PROTO", "STOP"}:
            self.stack.append(self._fresh(name, argument))

    def _fresh(self, name: str, argument: object) -> _Value:
        """Return the weight of a value that is not made of others."""
        if name == "GLOBAL":
            return self.collection if argument in _COLLECTIONS else self.function
        if name in {"EMPTY_LIST", "EMPTY_DICT"}:
            return _Value(is_list=name == "EMPTY_LIST")
        if isinstance(argument, int) and abs(argument) >= 2**64:
            return _Value(depth=1)
        if isinstance(argument, str) and len(argument) > _TEXT:
            return _Value(len(argument) // _TEXT)
        return self.plain

    def _parts(self, count: int | None) -> list[_Value]:
        """Take that many values from the stack; if None, all since the last mark, and the mark."""
        if count is not None:
            return [self.stack.pop() for _ in range(count)]
        parts, self.stack = self.stack, self.frames.pop()
        return parts

    def _repeat(self, weight: int) -> None:
        self.repeated += weight
        if self.repeated > MAX_WEIGHT:
            raise CheckpointError(f"its pickle repeats its values until they are more than {MAX_WEIGHT}{_ADVICE}")
