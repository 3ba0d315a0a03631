"""Writing an `ImageSet` as a parquet file in Hugging Face's layout, which `read_images` and others read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.tables import quiet
from unbackdoor.errors import DataError
from unbackdoor.files import replacing

ROWS = 1000
"""In a row group: what is held in memory at once."""


def write_parquet(path: Path, images: ImageSet, columns: Mapping[str, Shaped[Tensor, "n"]]) -> None:
    """Write images (as PNG, so that every pixel comes back), labels and further columns, complete or not at all.

    Args:
        path: of the file.
        images: with one or three channels.
        columns: by name, truth values or class numbers.

    Raises:
        DataError: images of another number of channels, which PNG and the readers of others do not know, or two
            classes of one name, which the layout does not know.
        OutputError: the file cannot be written.
    """
    import datasets
    from pyarrow import Table, parquet

    if images.shape[0] not in (1, 3):
        raise DataError(f"{images.name} has images of {images.shape[0]} channels; only 1 or 3 can be written as PNG")
    if len(set(images.class_names)) < images.classes:
        raise DataError(f"two classes of {images.name} have one name; give each its own")
    classes = datasets.ClassLabel(names=list(images.class_names))
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": classes,
            **{
                name: datasets.Value("bool") if values.dtype == torch.bool else classes
                for name, values in columns.items()
            },
        }
    )
    schema = features.arrow_schema
    with replacing(path) as partial, quiet(offline=True), parquet.ParquetWriter(partial, schema) as file:
        for start in range(0, len(images), ROWS):
            part = slice(start, start + ROWS)
            rows = {
                "image": [{"bytes": _png(image), "path": None} for image in images.images[part]],
                "label": images.labels[part].tolist(),
                **{name: values[part].tolist() for name, values in columns.items()},
            }
            file.write_table(Table.from_pydict(rows, schema))


def _png(image: Tensor) -> bytes:
    pixels = image.cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    # Fastest compression: small images gain little from more.
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
