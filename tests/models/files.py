"""Small networks and the bytes of files, for the tests of models."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unbackdoor.models import Description, Network, build_network


def small_description(**changes: Any) -> Description:
    """A WRN16x1 of width 2 for 3 x 16 x 16 images of 4 classes, with some fields changed."""
    fields: dict[str, Any] = {
        "architecture": "WRN16x1",
        "arguments": {"width": 2},
        "class_names": ("a", "b", "c", "d"),
        "image_shape": (3, 16, 16),
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.3, 0.25),
    }
    return Description(**(fields | changes))


def small_network(**changes: Any) -> Network:
    """A network of `small_description`, the same each time."""
    return build_network(small_description(**changes), seed=3)


def torch_bytes(content: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rezip(
    data: bytes,
    change: Callable[[str, bytes], bytes | None] = lambda name, content: content,
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """Return a zip file of the same records, each changed or left out, and of extra ones."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for entry in old.infolist():
            content = change(entry.filename, old.read(entry))
            if content is not None:
                new.writestr(entry.filename, content)
        for name, content in (extra or {}).items():
            new.writestr(name, content)
    return buffer.getvalue()


def safetensors_bytes(header: dict[str, Any] | bytes, tensors: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def assert_same_weights(state: dict[str, Tensor], network: Network) -> None:
    loaded = network.body.state_dict()
    assert list(loaded) == list(state)
    for name, tensor in state.items():
        assert loaded[name].dtype == (torch.float32 if tensor.is_floating_point() else tensor.dtype), name
        assert torch.equal(loaded[name], tensor.to(loaded[name].dtype)), name


def trained(network: Network) -> Network:
    """The network after a forward pass in training mode, so that no statistic has its first value."""
    with torch.no_grad():
        network.train()(torch.rand(4, *network.description.image_shape))
    return network.eval()
