"""What a model file may contain, and the checks on its tensors; everything here assumes a hostile file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import CheckpointError
from unbackdoor.limits import MAX_CHANNELS, MAX_CLASS_NAME, MAX_CLASSES, MAX_IMAGE_SIDE
from unbackdoor.text import clean_text

# Large enough for every image classifier in use (ViT-L is 1.2 GB), small enough for a common machine.
MAX_FILE_BYTES = 2**31
MAX_TENSORS = 10_000
MAX_NAME = 256
MAX_DIMENSIONS = 8
# Entries, of 8 bytes at most.
SMALL_BUFFERS = 2**24

FLOATS = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})

# Prefixes that wrappers put before every name: DataParallel, torch.compile, and our own `Network`.
_WRAPPERS = ("module.", "_orig_mod.", "body.")


def check_tensors(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return `state` if each entry is a plain tensor whose elements are really stored.

    Nothing is copied: a tensor that declares more elements than its storage holds (by strides of 0) is
    refused before anything would allocate them.

    Raises:
        CheckpointError: too many tensors, a name that is no text or too long, something that is no dense
            tensor in memory, a type that weights do not have, or more elements declared than stored.
    """
    if len(state) > MAX_TENSORS:
        raise CheckpointError(f"it holds {len(state)} tensors, more than the {MAX_TENSORS} that are accepted")
    checked: dict[str, Tensor] = {}
    declared, storages = 0, {}
    for name, tensor in state.items():
        check_name(name)
        shown = f"the tensor {clean_text(name, 80)}"
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise CheckpointError(f"{shown} is not a plain dense tensor; save only the model's state_dict()")
        if tensor.dtype not in FLOATS | INTEGERS:
            raise CheckpointError(f"{shown} has the type {tensor.dtype}; save the weights as float32")
        size, storage = tensor.numel() * tensor.element_size(), tensor.untyped_storage()
        # Of a tensor without elements, sides could be of any length.
        if size > storage.nbytes() or tensor.ndim > MAX_DIMENSIONS or max(tensor.shape, default=0) > 2**40:
            raise CheckpointError(
                f"{shown} declares {tensor.numel()} elements in {tensor.ndim} dimensions, but the file stores"
                f" {storage.nbytes()} bytes for it; save a contiguous copy of it"
            )
        declared += size
        storages[storage.data_ptr()] = storage.nbytes()
        checked[name] = tensor.detach()
    # Weights may be shared between two names, but not between a thousand.
    stored = sum(storages.values())
    if declared > 2 * stored:
        raise CheckpointError(f"its tensors declare {declared} bytes, but the file stores {stored}")
    return checked


def check_name(name: object) -> None:
    """Refuse a tensor's name that is not text of a reasonable length."""
    if not isinstance(name, str) or not name or len(name) > MAX_NAME:
        shown = clean_text(str(name), 60) if isinstance(name, (str, int, float)) else type(name).__name__
        raise CheckpointError(f"a tensor has the name {shown!r}; names must be text of 1 to {MAX_NAME} characters")


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not numbers: a model that puts out NaN is never "clean".

    Values too large for float32, in which they are used, count as infinite.
    """
    for name, tensor in state.items():
        if tensor.dtype in FLOATS and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckpointError(
                f"NaN weights: {clean_text(name, 80)} holds values that are NaN or infinite,"
                " so nothing can be said about this model; train it again"
            )


def check_buffers(body: nn.Module, stored: int) -> None:
    """Refuse a network whose buffers, which a file does not have to hold, are far larger than the file.

    Args:
        body: built without memory (on the device "meta").
        stored: elements in the file. Tables such as those of Swin's positions may have as many again.
    """
    entries = sum(buffer.numel() for buffer in body.buffers())
    if entries > stored + SMALL_BUFFERS:
        raise CheckpointError(f"it describes a network with tables of {entries} entries, but stores {stored} weights")


def unwrap_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors without the prefixes that wrappers (such as DataParallel) put before every name."""
    names = dict(state)
    while names:
        prefix = next((one for one in _WRAPPERS if all(name.startswith(one) for name in names)), None)
        if prefix is None:
            break
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def check_class_names(names: object) -> tuple[str, ...]:
    """Return the class names as a tuple, or refuse what is no list of short texts."""
    if not isinstance(names, (list, tuple)) or not 1 <= len(names) <= MAX_CLASSES:
        raise CheckpointError(f"its class names must be a list of 1 to {MAX_CLASSES} texts")
    if not all(isinstance(name, str) and len(name) <= MAX_CLASS_NAME for name in names):
        raise CheckpointError(f"its class names must be texts of at most {MAX_CLASS_NAME} characters")
    return tuple(names)


def check_image_shape(shape: object) -> tuple[int, int, int]:
    """Return channels, height and width as a tuple, or refuse what is no image shape."""
    if not isinstance(shape, (list, tuple)) or len(shape) != 3 or any(type(side) is not int for side in shape):
        raise CheckpointError("its image shape must be three whole numbers (channels, height, width)")
    channels, height, width = shape
    if not (1 <= channels <= MAX_CHANNELS and all(1 <= side <= MAX_IMAGE_SIDE for side in (height, width))):
        raise CheckpointError(
            f"its image shape is {channels} x {height} x {width}; at most {MAX_CHANNELS} channels and"
            f" {MAX_IMAGE_SIDE} pixels a side are accepted"
        )
    return channels, height, width


def check_scaling(mean: object, std: object, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation as tuples of one finite number per channel, the latter positive."""
    columns = []
    for name, values in (("mean", mean), ("std", std)):
        right_type = isinstance(values, (list, tuple)) and all(type(value) in (int, float) for value in values)
        if not right_type or len(values) != channels:  # type: ignore[arg-type]
            raise CheckpointError(f"the normalisation's {name} must be {channels} numbers, one per channel")
        try:
            columns.append(tuple(float(value) for value in values))  # type: ignore[attr-defined]
        except OverflowError:
            raise CheckpointError(f"the normalisation's {name} holds a number beyond all floats") from None
    if not all(math.isfinite(value) for column in columns for value in column):
        raise CheckpointError("the normalisation holds a number that is NaN or infinite")
    if not all(1e-6 < value < 1e6 for value in columns[1]):
        raise CheckpointError("the normalisation's std must be positive numbers")
    return columns[0], columns[1]
