"""Chance of each row's own: what is drawn for an image depends on the seed and its pixels, not on its company.

So a row is scored alike wherever it stands, in whatever batch, and whether all rows are held at once or not.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unbackdoor.training import Runtime

BYTES = 4
"""Of chance for each number: 2^32 different ones."""


def lots(images: UInt8[Tensor, "n c h w"], runtime: Runtime, purpose: str, count: int) -> Float[Tensor, "n k"]:
    """Return numbers for each image, evenly drawn from 0 to below 1, in double precision, on the CPU.

    Equal images get equal numbers.

    Args:
        images: uint8 pixels.
        runtime: has the seed.
        purpose: what is drawn; other purposes draw independently.
        count: of numbers an image.
    """
    key = hashlib.sha256(repr((runtime.seed, purpose)).encode()).digest()
    rows = images.cpu().contiguous().flatten(1).numpy()
    drawn = b"".join(hashlib.shake_128(key + hashlib.sha256(row).digest()).digest(BYTES * count) for row in rows)
    numbers = np.frombuffer(drawn, "<u4").reshape(len(rows), count)
    return torch.from_numpy(numbers / 2.0 ** (8 * BYTES))
