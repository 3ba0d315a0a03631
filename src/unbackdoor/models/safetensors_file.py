"""Reading and writing safetensors, with the bounds that the format itself does not set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unbackdoor.errors import CheckpointError
from unbackdoor.models.limits import MAX_DIMENSIONS, MAX_TENSORS, check_name, check_tensors
from unbackdoor.text import clean_text

MAX_HEADER_BYTES = 8 * 2**20
MAX_METADATA_CHARACTERS = 4 * 2**20

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


def read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    The header is checked against the file before any tensor is made: the tensors must fill the file exactly,
    without overlap, hole or trailing bytes.

    Raises:
        CheckpointError: a header that is damaged, too large or does not fit the file, or a type that weights
            do not have.
    """
    header, start = _header(data)
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise CheckpointError(f"it holds {len(header)} tensors, more than the {MAX_TENSORS} that are accepted")
    if not header:
        raise CheckpointError("it holds no tensors; save the model's state_dict()")
    ends = sorted(_extent(name, entry) for name, entry in header.items())
    position = 0
    for begin, end in ends:
        if begin != position:
            raise CheckpointError("its tensors overlap or leave holes; save it again")
        position = end
    stored = len(data) - start
    if position != stored:
        fault = "is cut off" if stored < position else "has bytes after its end"
        raise CheckpointError(
            f"it {fault}: the header declares {position} bytes of tensors and the file has {stored};"
            " copy or download it again"
        )
    try:
        return check_tensors(safetensors.torch.load(data)), metadata
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"damaged safetensors: {clean_text(str(error))}; copy it again") from error


def write_safetensors(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return a safetensors file of copies of the tensors: shared weights are written once per name."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    return safetensors.torch.save(tensors, dict(metadata))


def json_object(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that a stranger wrote.

    Raises:
        CheckpointError: no JSON, no object, a name given twice (readers would differ on which counts), or
            nesting that is too deep.
    """
    try:
        content = json.loads(text, object_pairs_hook=_without_repeats)
    # A RecursionError is what the standard library answers to a million opening brackets.
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"its {what} is no valid JSON: {clean_text(str(error), 100)}; save it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"its {what} is no JSON object; save it again")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise ValueError("a name is given twice")
    return content


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    """Return the header and where the tensors start."""
    length = int.from_bytes(data[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"its header is {length} bytes long; at most {MAX_HEADER_BYTES} are accepted")
    if 8 + length > len(data):
        raise CheckpointError("it is cut off within its header; copy or download it again")
    return json_object(data[8 : 8 + length], "safetensors header"), 8 + length


def _metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError("its metadata must be texts by name; save it again")
    if sum(len(key) + len(value) for key, value in metadata.items()) > MAX_METADATA_CHARACTERS:
        raise CheckpointError(f"its metadata is longer than {MAX_METADATA_CHARACTERS} characters")
    return metadata


def _extent(name: str, entry: object) -> tuple[int, int]:
    """Return where a tensor begins and ends among the tensors' bytes."""
    check_name(name)
    shown = f"the tensor {clean_text(name, 80)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"the header describes {shown} in a malformed way; save it again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise CheckpointError(f"{shown} has the type {clean_text(str(dtype), 20)}; save the weights as float32")
    if not (_are_sizes(shape) and _are_sizes(offsets)) or len(shape) > MAX_DIMENSIONS or len(offsets) != 2:
        raise CheckpointError(f"the header describes {shown} in a malformed way; save it again")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise CheckpointError(f"{shown} declares a shape that does not fit its {end - begin} bytes; save it again")
    return begin, end


def _are_sizes(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**40 for value in values)
