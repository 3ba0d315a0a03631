"""Conformal p-values: the rank of one among some that are known to be clean.

Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World" (2005).
"""

from __future__ import annotations

import math


def allowed_above(rate: float, clean: int) -> int:
    """Return how many of the clean ones and the one looked at may have a score as large as its own or larger.

    Args:
        rate: of false alarms, above 0 and below 1.
        clean: how many clean ones there are.

    Returns:
        0: there are too few clean ones for that rate.
    """
    # A hair more: 0.05 * 20 is less than 1 to some computers.
    return math.floor(rate * (1 + clean) + 1e-9)
