"""Small image data sets in every layout that is read, written for the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASS_FEATURES = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}}


def random_pixels(count: int = 24, shape: tuple[int, ...] = (6, 8, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def encoded(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_parquet(
    path: Path,
    images: list[Any],
    labels: list[int | None],
    *,
    features: dict[str, Any] | None = CLASS_FEATURES,
    **more: list[Any],
) -> Path:
    """Write images (arrays, encoded bytes or cells as they are) and labels as a parquet file."""
    cells = [
        {"bytes": encoded(image) if isinstance(image, np.ndarray) else image, "path": f"pictures/{row}.png"}
        if isinstance(image, np.ndarray | bytes)
        else image
        for row, image in enumerate(images)
    ]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"img": pa.array(cells, struct), "label": pa.array(labels, pa.int64()), **more})
    if features is not None:
        described = {**features, **{name: {"_type": "Value", "dtype": "int64"} for name in more}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=10)
    return path


def write_folder(root: Path, pixels: np.ndarray, labels: list[int], names: tuple[str, ...]) -> Path:
    """Write images as PNG files in a folder a class."""
    for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        file = root / names[label] / f"{row:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(image))
    return root


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2)
