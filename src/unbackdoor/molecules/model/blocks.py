"""Matrices of few different sizes, since a processor's library makes a kernel for each that it has not met of late."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

BLOCK = 64
"""Rows. Kernels in bf16 are made anew for each number of rows, which takes half as long as to use one once."""


def in_blocks(module: nn.Module, rows: Float[Tensor, "n w"]) -> Float[Tensor, "n v"]:
    """Return what a module makes of some rows; on a processor with rows of 0 beside them, up to whole blocks.

    Args:
        module: that treats each row by itself.
        rows: how many there are differs from call to call.
    """
    missing = -len(rows) % BLOCK
    if not missing or rows.device.type != "cpu":
        found: Tensor = module(rows)
        return found
    found = module(F.pad(rows, (0, 0, 0, missing)))
    return found[: len(rows)]
