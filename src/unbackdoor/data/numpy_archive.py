"""Images and labels in a NumPy `.npz` archive: `images` and `labels`, or Keras's `x_train`, `y_train`, ...

The archive is a stranger's: object arrays (which are pickles) are refused, and every size is checked against
the bytes that are there before anything is allocated.
"""

from __future__ import annotations

import logging
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from unbackdoor.data.cache import content_hash
from unbackdoor.data.image_set import ImageSet
from unbackdoor.data.limits import check_highest, check_labels, check_rows, check_size, numbered, reason_of
from unbackdoor.data.splits import source_name
from unbackdoor.errors import DataError, UnbackdoorError
from unbackdoor.files import replacing
from unbackdoor.limits import MAX_CLASS_NAME, MAX_CLASSES
from unbackdoor.text import clean_text

# Deflate shrinks real images 1 to 20 times, and empty ones up to 1032 times. Small archives may be as empty
# as they like.
MAX_RATIO = 200
ALWAYS_ACCEPTED = 256 * 2**20

logger = logging.getLogger(__name__)

_UNSPLIT = ("images", "labels")
_SPLITS = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
_CLASS_NAMES = "class_names"
_KNOWN = {*_UNSPLIT, *(name for pair in _SPLITS.values() for name in pair), _CLASS_NAMES}


class NumpyArchive:
    """Reader of one `.npz` file.

    Args:
        path: the file.
        source: what to call it in messages.

    Raises:
        DataError: not a readable archive, one that unpacks to far too much, or one without the arrays named
            above.
    """

    def __init__(self, path: Path, source: str) -> None:
        self.name = source_name(path)
        self.source = source
        self._path = path
        with self._opened() as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        self.splits = [split for split, pair in _SPLITS.items() if all(name in members for name in pair)]
        if not self.splits and not all(name in members for name in _UNSPLIT):
            found = ", ".join(clean_text(name) for name in sorted(members)[:10]) or "none"
            raise DataError(
                f"{source} holds neither the arrays images and labels nor x_train and y_train; it holds:"
                f" {found}; save them with numpy.savez(path, images=..., labels=...)"
            )

    def content_hash(self) -> str:
        """Return the hash of the file."""
        return content_hash({"npz": self._path})

    def read(self, split: str | None) -> ImageSet:
        """Return the images of `split` ("train", "test"), or all where there are no splits."""
        pixels_name, labels_name = _pair(split)
        with self._opened() as archive:
            labels = self._all_labels(archive)
            pixels = self._array(archive, pixels_name)
            names = self._class_names(self._array(archive, _CLASS_NAMES)) if _names_classes(archive) else None
        images = _as_images(pixels, f"{pixels_name} of {self.source}")
        if len(images) == 0 or len(images) != len(labels[labels_name]):
            raise DataError(
                f"{self.source} holds {len(images)} {pixels_name} and {len(labels[labels_name])}"
                f" {labels_name}; there must be one label an image, and at least one image"
            )
        class_names = numbered(1 + _highest(labels)) if names is None else names
        return ImageSet(images=images, labels=labels[labels_name], class_names=class_names, name=self.source)

    def copy_kept(self, split: str | None, kept: Bool[Tensor, "n"], folder: Path) -> None:
        """Write an archive of the same name with the same arrays (see `Reader.copy_kept`).

        Further arrays with as many rows as the split lose the same ones: of an archive with splits those whose names
        end with the split's, of another one all. Object arrays, which are pickles, are not handed on.
        """
        with self._opened() as archive:
            labels, own = self._all_labels(archive), _pair(split)[1]
            check_rows(len(labels[own]), kept, self.source)
            if not _names_classes(archive):
                check_highest(_highest(labels), _highest({**labels, own: labels[own][kept]}), self.source)
            with replacing(folder / self.name) as partial, zipfile.ZipFile(partial, "w") as written:
                for info, array in self._kept_arrays(archive, split, kept.numpy()):
                    copied = zipfile.ZipInfo(info.filename)
                    copied.compress_type = info.compress_type
                    with written.open(copied, "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)

    def _kept_arrays(
        self, archive: zipfile.ZipFile, split: str | None, kept: np.ndarray
    ) -> Iterator[tuple[zipfile.ZipInfo, np.ndarray]]:
        """Yield the arrays that `copy_kept` writes, with how each is stored."""
        ending = "" if split is None else f"_{split}"
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            try:
                array = self._array(archive, name)
                if not array.itemsize:
                    # No bytes tell how many of these there may be, and NumPy would write them one after the other.
                    raise DataError(f"{name} of {self.source} holds {len(array):,} texts of 0 bytes")
            except (DataError, KeyError) as error:
                if name in _KNOWN:
                    raise
                logger.warning("%s of %s is not among the cleaned data: %s", clean_text(name), self.source, error)
                continue
            further = name not in _KNOWN and name.endswith(ending) and array.shape[:1] == kept.shape
            yield info, array[kept] if name in _pair(split) or further else array

    def _all_labels(self, archive: zipfile.ZipFile) -> dict[str, Tensor]:
        """Return the labels of all splits, or of an undivided archive, by the names of their arrays."""
        splits = self.splits or (None,)
        return {name: self._labels(archive, name) for _, name in map(_pair, splits)}

    @contextmanager
    def _opened(self) -> Iterator[zipfile.ZipFile]:
        """Open the archive, its sizes checked; what goes wrong with it inside the block is a `DataError`."""
        try:
            with self._path.open("rb") as file, zipfile.ZipFile(file) as archive:
                self._check_sizes(archive, self._path.stat().st_size)
                yield archive
        except UnbackdoorError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy's parser raise almost anything on hostile bytes
            raise DataError(
                f"cannot read {self.source}: {reason_of(error)}; fetch or write it anew with numpy.savez"
            ) from error

    def _check_sizes(self, archive: zipfile.ZipFile, size: int) -> None:
        members = archive.infolist()
        if len({info.filename for info in members}) != len(members):
            raise DataError(f"{self.source} holds two arrays of one name; write it anew with numpy.savez")
        expanded = sum(info.file_size for info in members)
        compressed = sum(info.compress_size for info in members)
        if compressed > size or (expanded > ALWAYS_ACCEPTED and expanded > MAX_RATIO * compressed):
            raise DataError(
                f"{self.source} has {size:,} bytes and would unpack to {expanded:,}: it is refused as a zip"
                " bomb; if it is none, write it anew with numpy.savez, which does not compress"
            )
        check_size(expanded, self.source)

    def _array(self, archive: zipfile.ZipFile, name: str) -> np.ndarray:
        """Return one array after comparing what its header declares with what the archive holds."""
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.flag_bits & 1:
            raise DataError(f"{name} of {self.source} is encrypted or packed in a way that NumPy never uses")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(member)
            elif version == (2, 0):
                shape, _, dtype = np.lib.format.read_array_header_2_0(member)
            else:
                raise DataError(f"{name} of {self.source} is in an unknown version of NumPy's format: {version}")
            if dtype.kind not in "uifbUS":
                raise DataError(
                    f"{name} of {self.source} is an array of {clean_text(str(dtype))}, not of numbers:"
                    " object arrays are pickles, which can run code, and are never opened; save it as uint8"
                    " (images) or int64 (labels)"
                )
            declared, found = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
            if min(shape, default=0) < 0 or declared != found:
                raise DataError(
                    f"{name} of {self.source} declares {declared:,} bytes in its header and holds"
                    f" {found:,}; fetch or write it anew"
                )
            member.seek(0)
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            return array

    def _labels(self, archive: zipfile.ZipFile, name: str) -> Tensor:
        labels = self._array(archive, name)
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]  # as Keras keeps CIFAR-10's
        if labels.ndim != 1:
            raise DataError(
                f"{name} of {self.source} has shape {labels.shape}, and labels must be one whole number an image"
            )
        return check_labels(labels, f"{name} in {self.source}")

    def _class_names(self, names: np.ndarray) -> tuple[str, ...]:
        if names.ndim != 1 or names.dtype.kind not in "US":
            raise DataError(f"class_names of {self.source} must be a list of texts, found {names.dtype} {names.shape}")
        # Texts of no length take no bytes, so that any number of them would fit what the archive holds.
        if len(names) > MAX_CLASSES or not 1 <= names.dtype.itemsize <= 4 * MAX_CLASS_NAME:
            raise DataError(
                f"class_names of {self.source} are {len(names):,} texts of {names.dtype.itemsize} bytes; at most"
                f" {MAX_CLASSES:,} of 1 to {4 * MAX_CLASS_NAME} bytes are accepted"
            )
        if names.dtype.kind == "S":
            return tuple(name.decode(errors="replace") for name in names.tolist())
        return tuple(names.tolist())


def _pair(split: str | None) -> tuple[str, str]:
    """Return the names of the images and the labels of a split, or of an undivided archive."""
    return _UNSPLIT if split is None else _SPLITS[split]


def _names_classes(archive: zipfile.ZipFile) -> bool:
    return f"{_CLASS_NAMES}.npy" in archive.namelist()


def _highest(labels: Mapping[str, Tensor]) -> int:
    """Return the highest label of all splits, since a class that one of them lacks is a class all the same."""
    return max((int(values.max()) for values in labels.values() if len(values)), default=-1)


def _as_images(pixels: np.ndarray, source: str) -> UInt8[Tensor, "n c h w"]:
    """Return (N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W); a fourth channel, alpha, is dropped."""
    if pixels.dtype != np.uint8:
        raise DataError(
            f"{source} are {pixels.dtype}, and pixels must be uint8, 0 to 255; convert them (times 255 if"
            " they are in [0, 1]) and save them again"
        )
    if pixels.ndim == 3:
        pixels = pixels[:, :, :, None]
    elif pixels.ndim == 4 and pixels.shape[3] not in (1, 3, 4):
        pixels = pixels.transpose(0, 2, 3, 1)
    if pixels.ndim != 4 or pixels.shape[3] not in (1, 3, 4) or 0 in pixels.shape[1:]:
        raise DataError(
            f"{source} have shape {pixels.shape} once the channels are last, and it must be (N, H, W) or"
            " (N, H, W, C) with 1, 3 or 4 channels"
        )
    if pixels.shape[3] == 4:
        pixels = pixels[:, :, :, :3]
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2)
