"""Decoded images kept between runs, so that a data set is decoded once.

A set is one safetensors file, named by a hash of the content of its source. What is read back is checked
against a digest that was stored with it: damage means decoding again, never wrong pixels. (The digest guards
against damage, not against somebody who can write to the folder: keep it private.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unbackdoor import files
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import DataError, OutputError

logger = logging.getLogger(__name__)

# Raise it whenever the same source would be decoded, divided or named differently than before.
VERSION = 1


def default_folder() -> Path:
    """Return `$UNBACKDOOR_CACHE`, or `unbackdoor` in the user's cache folder."""
    try:
        if chosen := os.environ.get("UNBACKDOOR_CACHE"):
            return Path(chosen).expanduser()
        if base := os.environ.get("XDG_CACHE_HOME"):
            return Path(base) / "unbackdoor"
        return Path("~/.cache/unbackdoor").expanduser()
    except RuntimeError as error:
        raise OutputError("the home folder of the cache is not known; set UNBACKDOOR_CACHE to a folder") from error


def content_hash(contents: Mapping[str, Path]) -> str:
    """Hash files with the names by which their data set knows them.

    Returns:
        64 hexadecimal digits that do not depend on where the data set lies.

    Raises:
        DataError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, path in sorted(contents.items()):
        try:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"cannot read {path}: {reason_of(error)}; check that it is there and that you may read it"
            ) from error
        digest.update(json.dumps([name, content]).encode())
    return digest.hexdigest()


def cache_key(content: str, *parts: str | None) -> str:
    """Return the name under which the `parts` (splits) of a source with this content hash are kept."""
    return files.sha256(json.dumps([VERSION, content, *parts]).encode())


def load(folder: Path, key: str, name: str) -> ImageSet | None:
    """Return the images kept under `key`, named `name`; None if there are none or they are damaged."""
    path = _path(folder, key)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if sorted(stored.keys()) != ["images", "labels"]:
                raise ValueError("it does not hold images and labels")
            # Copied: tensors that stay mapped would change, or end the program, with the file.
            pixels = stored.get_tensor("images").clone()
            labels = stored.get_tensor("labels").clone()
        class_names = json.loads(metadata["class_names"])
        if not isinstance(class_names, list) or not all(isinstance(item, str) for item in class_names):
            raise ValueError("its class names are not a list of texts")
        if metadata["digest"] != _digest(key, pixels, labels, class_names):
            raise ValueError("its content does not match its digest")
        return ImageSet(images=pixels.permute(0, 3, 1, 2), labels=labels, class_names=tuple(class_names), name=name)
    except (SafetensorError, DataError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        logger.warning("kept images in %s are damaged (%s); decoding %s again", path, reason_of(error), name)
        return None


def store(folder: Path, key: str, images: ImageSet) -> None:
    """Keep `images` under `key`; a folder that cannot be written is worth a warning, not an error."""
    pixels = images.images.permute(0, 2, 3, 1).contiguous()
    class_names = list(images.class_names)
    metadata = {
        "class_names": json.dumps(class_names),
        "digest": _digest(key, pixels, images.labels, class_names),
    }
    try:
        with files.replacing(_path(folder, key)) as partial:
            save_file({"images": pixels, "labels": images.labels}, partial, metadata=metadata)
    except (OutputError, SafetensorError) as error:
        logger.warning("cannot keep the decoded images of %s: %s", images.name, reason_of(error))


def _path(folder: Path, key: str) -> Path:
    return folder / f"images-{key}.safetensors"


def _digest(key: str, pixels: UInt8[Tensor, "n h w c"], labels: Int[Tensor, "n"], class_names: Sequence[str]) -> str:
    """Hash all that is kept, with the key, so that a file moved to another name is noticed too."""
    if pixels.dtype != torch.uint8 or labels.dtype != torch.int64:
        raise ValueError("its tensors are of the wrong type")
    digest = hashlib.sha256(json.dumps([key, tuple(pixels.shape), tuple(labels.shape), list(class_names)]).encode())
    digest.update(pixels.numpy().data)
    digest.update(labels.numpy().data)
    return digest.hexdigest()
