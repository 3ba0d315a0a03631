"""Files of calibration tables: what is read of them is checked in every part, and none is written that could not be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.files import read_bytes, write_bytes
from unbackdoor.models.safetensors_file import json_object
from unbackdoor.options import with_options
from unbackdoor.scan.base import Scanner
from unbackdoor.scan.calibration import HeldOut, Table
from unbackdoor.text import clean_text

SHIPPED = Path(__file__).with_name("calibration.json")
"""The tables that come with the package."""
FORMAT = 4
MOST_BYTES = 1 << 26
MOST_ENTRIES = 100_000
"""Of any list in a file of tables."""
LARGEST = 1e30
"""Of any number in a file of tables."""


def read_tables(path: Path = SHIPPED) -> tuple[Table, ...]:
    """Read calibration tables.

    Raises:
        InputError: the file cannot be read, or is none of ours.
    """
    where = clean_text(str(path))
    try:
        content = json_object(read_bytes(path, MOST_BYTES), "content")
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); name a file of calibration tables") from error
    except (ValueError, CheckpointError) as error:
        raise InputError(f"{where}: {error}; name a file of calibration tables") from error
    try:
        if content.get("format") != FORMAT:
            raise _Wrong(f"its format is {content.get('format')!r}, not {FORMAT}")
        return tuple(_table(one) for one in _list(content, "tables"))
    except (_Wrong, InputError) as error:
        raise InputError(f"{where} holds no calibration tables: {clean_text(str(error))}; make it again") from error


def holds_tables(path: Path) -> bool:
    """Return whether a file is one of calibration tables, whole or not, of this format or of another."""
    try:
        return json_object(read_bytes(path, MOST_BYTES), "content").keys() >= {"format", "tables"}
    except (OSError, ValueError, CheckpointError):
        return False


def write_tables(path: Path, tables: Sequence[Table], **facts: str) -> None:
    """Write calibration tables, complete or not at all, and none that could not be read back.

    Args:
        path: of the file.
        tables: one or more.
        facts: of their making, for people.

    Raises:
        InputError: a table is not whole.
        OutputError: the file cannot be written.
    """
    told = [table.to_json() for table in tables]
    try:
        for one in told:
            _table(json.loads(json.dumps(one)))
    except _Wrong as error:
        raise InputError(f"{clean_text(str(path))} is not written, as it could not be read: {error}") from error
    # A line a table: with one a number, files were mostly white space.
    head = json.dumps({"format": FORMAT, **facts, "tables": []}, allow_nan=False).removesuffix("]}")
    lines = ",\n".join(json.dumps(one, allow_nan=False, separators=(",", ":")) for one in told)
    content = f"{head}\n{lines}\n]}}\n".encode()
    if len(content) > MOST_BYTES:
        raise InputError(
            f"{clean_text(str(path))} is not written, as it would have {len(content):,} bytes and {MOST_BYTES:,} are"
            " read; make a zoo of fewer rounds, or of one network"
        )
    write_bytes(path, content)


class _Wrong(Exception):
    """Something in a file is not what it must be."""


def _table(content: Any) -> Table:
    of = _object(content, "a table")
    told = _list(of, "detectors")
    detectors = tuple(_detector(one) for one in told)
    changed = tuple(type(one).__name__ for one, of in zip(detectors, told) if one.revision != of.get("revision", 0))
    names = {type(detector).__name__ for detector in detectors}
    if len(names) < len(detectors):
        raise _Wrong("a detector stands twice in a table")
    shape = [_whole(side, "image_shape") for side in _list(of, "image_shape")]
    if len(shape) != 3:
        raise _Wrong("image_shape must be channels, height and width")
    # As they are: they are compared with those of models, and never shown.
    class_names = tuple(_name(name) for name in _list(of, "class_names"))
    clean = _object(of.get("clean"), "clean")
    if clean.keys() != names:
        raise _Wrong("clean must have the numbers of each detector")
    numbers = {name: _numbers(clean, name, len(class_names)) for name in clean}
    if len({len(one) for one in numbers.values()}) > 1:
        raise _Wrong("the detectors must have looked at equally many clean models")
    return Table(
        name=clean_text(_text(of.get("name"), "name")),
        data=clean_text(_text(of.get("data"), "data")),
        class_names=class_names,
        image_shape=(shape[0], shape[1], shape[2]),
        architecture=_text(of.get("architecture"), "architecture"),
        arguments=_object(of.get("arguments"), "arguments"),
        clean_size=_whole(of.get("clean_size"), "clean_size"),
        precision=_text(of.get("precision"), "precision"),
        rate=_number(of.get("rate"), "rate", least=0.0, most=1.0),
        detectors=detectors,
        clean=numbers,
        held_out=_held_out(of.get("held_out")),
        changed=changed,
    )


def _numbers(clean: Mapping[str, Any], name: str, classes: int) -> Float[Tensor, "n _ k"]:
    """Return what a detector said of each clean model."""
    models = [[_list({name: row}, name) for row in _list({name: model}, name)] for model in _list(clean, name)]
    rows = {len(model) for model in models}
    if len(rows) > 1 or {len(row) for model in models for row in model} != {classes}:
        raise _Wrong(f"{name} must have as many rows for each model, and a number for each class")
    return torch.tensor([[[_number(one, name) for one in row] for row in model] for model in models])


def _held_out(content: Any) -> HeldOut:
    of = _object(content, "held_out")
    counts = {name: _whole(of.get(name), name, least=0) for name in HeldOut.__dataclass_fields__}
    found = HeldOut(**counts)
    if found.alarms > found.clean or not found.right_target <= found.single_target <= found.found <= found.backdoored:
        raise _Wrong("held_out counts more than there are")
    return found


def _detector(content: Any) -> Scanner:
    # The registry has the verdict, which reads tables.
    from unbackdoor.scan import SCANNERS
    from unbackdoor.scan.verdict import Verdict

    of = _object(content, "a detector")
    method = SCANNERS[_text(of.get("name"), "name")]
    if method is Verdict:
        raise _Wrong("the verdict cannot be one of its own detectors")
    made: Scanner = with_options(
        method, {name: value for name, value in of.items() if name not in ("name", "revision")}
    )()
    return made


def _object(content: Any, what: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise _Wrong(f"{what} must be an object")
    return content


def _list(of: Mapping[str, Any], name: str) -> list[Any]:
    content = of.get(name)
    if not isinstance(content, list) or not 0 < len(content) <= MOST_ENTRIES:
        raise _Wrong(f"{name} must be a list with 1 to {MOST_ENTRIES} entries")
    return content


def _text(content: Any, what: str) -> str:
    if not isinstance(content, str) or not 0 < len(content) <= 500:
        raise _Wrong(f"{what} must be a text of at most 500 letters")
    return content


def _name(content: Any) -> str:
    if not isinstance(content, str):
        raise _Wrong("the name of a class must be a text")
    return content


def _whole(content: Any, what: str, least: int = 1) -> int:
    if type(content) is not int or not least <= content <= 1 << 40:
        raise _Wrong(f"{what} must be a whole number of {least} or more")
    return content


def _number(content: Any, what: str, least: float = -LARGEST, most: float = LARGEST) -> float:
    if type(content) not in (int, float) or not least <= content <= most:
        raise _Wrong(f"{what} must be a number from {least:g} to {most:g}")
    return float(content)
