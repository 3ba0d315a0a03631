"""Isolation of samples that were learned too easily, as ABL does it: poisoned ones have the lowest losses early on.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021). Training
before it does not let the loss fall below a bound (`unbackdoor.training.bounded`). Published code runs the images one
by one; here it is one batched pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def lowest(losses: Float[Tensor, "n"], share: float) -> tuple[Int[Tensor, "isolated"], Int[Tensor, "kept"]]:
    """Return the rows with the lowest losses, and the others, both ascending.

    Args:
        losses: of all rows.
        share: of the rows that are isolated, above 0 and below 1; at least one row, and never all.
    """
    count = min(max(1, round(share * len(losses))), len(losses) - 1)
    order = torch.argsort(losses.cpu(), stable=True)
    return order[:count].sort().values, order[count:].sort().values
