"""`ImageSet`: a labelled set of images as two tensors on one device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unbackdoor.errors import DataError

PART = 4096
"""Images whose pixels are copied at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """Images and labels as tensors; subsets and batches are tensor operations.

    Attributes:
        images: uint8 pixels, shape (N, C, H, W), 0 to 255.
        labels: class of each image, shape (N,), 0 to `len(class_names) - 1`.
        class_names: one name per class. Text from outside: escape it before it is shown.
        name: where the images came from, for reports.

    Raises:
        DataError: tensors of the wrong type or shape, no images, or a label out of range.
    """

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    class_names: tuple[str, ...]
    name: str = "images"

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            found = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"{self.name}: images must be uint8 with shape (N, C, H, W), found {found}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            found = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"{self.name}: {len(self.images)} images need as many int64 labels, found {found}")
        if len(self.images) == 0:
            raise DataError(f"{self.name}: holds no images; name a data set with at least one image")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise DataError(
                f"{self.name}: labels run from {low} to {high}, but there are {len(self.class_names)} classes"
                " (numbered from 0); correct the labels or name all the classes"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of classes, whether or not each of them has images."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.images.device

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the set on `device` (itself if it is there already)."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def subset(self, rows: Int[Tensor, "m"]) -> ImageSet:
        """Return the images at `rows`, in that order."""
        rows = rows.to(self.device)
        return replace(self, images=self.images[rows], labels=self.labels[rows])

    def class_counts(self) -> Int[Tensor, "classes"]:
        """Return how many images each class has."""
        return torch.bincount(self.labels, minlength=self.classes)

    def canonical_order(self) -> Int[Tensor, "n"]:
        """Return the rows in an order that depends on images and labels alone, not on how they were ordered."""
        keys = [
            hashlib.sha256(row.tobytes() + bytes(str(label), "ascii")).digest()
            # In parts, since another layout of all of them takes as much memory again.
            for part, labels in zip(torch.split(self.images, PART), torch.split(self.labels, PART))
            for row, label in zip(part.cpu().contiguous().flatten(1).numpy(), labels.tolist())
        ]
        return torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))

    def in_canonical_order(self) -> ImageSet:
        """Return the images at the rows of `canonical_order`."""
        return self.subset(self.canonical_order())

    def digest(self) -> str:
        """Return the SHA-256 of pixels, labels and class names (64 hexadecimal digits)."""
        digest = hashlib.sha256(repr((tuple(self.images.shape), self.class_names)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()


def balanced_rows(labels: Int[Tensor, "n"], size: int, seed: int) -> Int[Tensor, "m"]:
    """Draw `size` rows without replacement, as equal in number per class as the data allow.

    Args:
        labels: class of each row.
        size: rows wanted; all rows are returned, shuffled, if there are not more.
        seed: the draw depends on this alone.

    Returns:
        Row numbers in ascending order, so that the draw's order carries no information.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = labels.cpu()
    order = torch.randperm(len(labels), generator=generator)
    # The rank of each row within its class: taking the lowest ranks first fills the classes evenly.
    by_class = torch.argsort(labels[order], stable=True)
    sorted_labels = labels[order][by_class]
    starts = torch.searchsorted(sorted_labels, sorted_labels)
    rank = torch.arange(len(labels)) - starts
    tie_break = torch.rand(len(labels), generator=generator)
    chosen = torch.argsort(rank + tie_break)[:size]
    return torch.sort(order[by_class[chosen]]).values
