"""Mutual information by a neural network (MINE).

Belghazi, Baratin, Rajeswar, Ozair, Bengio, Courville, Hjelm, "Mutual Information Neural Estimation" (ICML 2018). A
network T of pairs gives a lower bound of the information between their members, the Donsker-Varadhan bound

    I >= mean T(joint pairs) - log mean exp T(independent pairs),

and learns to make it large. The gradient of the logarithm on a batch is biased. As in the paper it is corrected by
dividing the gradient of mean exp T by a moving average of it instead of its value on the batch. Everything here is for
a stack of networks, one a row, and computed with logarithms, so that large T do not overflow.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

RATE = 0.001
"""Of the moving average of mean exp T."""


def information(joint: Float[Tensor, "s b"], independent: Float[Tensor, "s b"]) -> Float[Tensor, "s"]:
    """Return the bound for each row, from T of joint and of independent pairs; nats."""
    return joint.mean(1) - log_mean_exp(independent)


def corrected_objective(
    joint: Float[Tensor, "s b"], independent: Float[Tensor, "s b"], log_average: Float[Tensor, "s"]
) -> Float[Tensor, "s"]:
    """Return what T maximises: its gradient is that of the bound, with the average in the place of the batch's value.

    Args:
        joint: T of joint pairs.
        independent: T of independent pairs.
        log_average: logarithm of the moving average of mean exp T over independent pairs.
    """
    return joint.mean(1) - (independent - log_average.detach()[:, None]).exp().mean(1)


def moved_average(log_average: Float[Tensor, "s"] | None, independent: Float[Tensor, "s b"]) -> Float[Tensor, "s"]:
    """Return the logarithm of the moving average after a batch; it starts with that of the first."""
    now = log_mean_exp(independent.detach())
    if log_average is None:
        return now
    return torch.logaddexp(log_average + math.log1p(-RATE), now + math.log(RATE))


def log_mean_exp(values: Float[Tensor, "s b"]) -> Float[Tensor, "s"]:
    """Return the logarithm of the mean of the exponentials of each row."""
    return values.logsumexp(1) - math.log(values.shape[1])
