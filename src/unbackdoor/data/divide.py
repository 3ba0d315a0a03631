"""A fixed division into train and test for sources that come without one.

Within each class the images are ordered by a hash of their pixels and the first fifth is the test part. So
the division is stratified, and the same whatever the order of the rows.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from unbackdoor.data.image_set import ImageSet

TEST_FRACTION = 0.2


def part_rows(images: ImageSet, part: Literal["train", "test"]) -> Int[Tensor, "m"]:
    """Return the rows of `part`, ascending.

    A class of two or more images has at least one on either side; a single image is for training.
    """
    labels = images.labels.tolist()
    pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
    members: dict[int, list[tuple[bytes, int]]] = {}
    for row, label in enumerate(labels):
        members.setdefault(label, []).append((hashlib.sha256(pixels[row].data).digest(), row))
    rows: list[int] = []
    for hashed in members.values():
        ordered = [row for _, row in sorted(hashed)]
        size = max(1, round(TEST_FRACTION * len(ordered))) if len(ordered) > 1 else 0
        rows += ordered[:size] if part == "test" else ordered[size:]
    return torch.tensor(sorted(rows), dtype=torch.int64)
