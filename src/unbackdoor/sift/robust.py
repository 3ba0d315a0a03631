"""Robust statistics that sifters share."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.training import Runtime


def robust_z(values: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Return how many scaled median absolute deviations each value lies above the median.

    A spread below a millionth of the median counts as that, so that equal values are no outliers.
    """
    from scipy.stats import median_abs_deviation

    if not len(values):
        return values.double()
    array = values.double().numpy()
    median = float(np.median(array))
    spread = float(median_abs_deviation(array, scale="normal"))
    return torch.from_numpy((array - median) / max(spread, 1e-6 * max(abs(median), 1e-6)))


def random_state(runtime: Runtime, *purpose: object) -> int:
    """Return a seed for scikit-learn that depends on the runtime's seed and the purpose alone."""
    return runtime.generator(*purpose).initial_seed() % 2**32
