"""Writing an `ImageSet` as a parquet file in Hugging Face's layout, which `read_images` and others read."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.tables import quiet
from unbackdoor.errors import DataError
from unbackdoor.files import replacing


def write_parquet(path: Path, images: ImageSet, columns: Mapping[str, Shaped[Tensor, "n"]]) -> None:
    """Write images (as PNG, so that every pixel comes back), labels and further columns, complete or not at all.

    Args:
        path: of the file.
        images: with one or three channels.
        columns: by name; a column of labels whose name ends in "label" keeps the class names, others are truth values.

    Raises:
        DataError: images of another number of channels, which PNG and the readers of others do not know.
        OutputError: the file cannot be written.
    """
    import datasets

    if images.shape[0] not in (1, 3):
        raise DataError(f"{images.name} has images of {images.shape[0]} channels; only 1 or 3 can be written as PNG")
    classes = datasets.ClassLabel(names=list(images.class_names))
    features = {"image": datasets.Image(), "label": classes}
    features |= {name: classes if name.endswith("label") else datasets.Value("bool") for name in columns}
    rows = {
        "image": [{"bytes": _png(image), "path": None} for image in images.images],
        "label": images.labels.tolist(),
        **{name: values.tolist() for name, values in columns.items()},
    }
    with replacing(path) as partial, quiet(offline=True):
        datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(partial)


def _png(image: Tensor) -> bytes:
    pixels = image.cpu().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    # Fastest compression: small images gain little from more.
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
