"""Switching channels off as far as clean samples allow: the last step of the pruning methods.

Every method gives each channel a score; the channels with scores below some value go. How far that value may go is
decided by accuracy on clean samples alone, along the whole range, and the curve is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.purify.channels import switch_off
from unbackdoor.purify.choice import accuracy_on, furthest
from unbackdoor.training import Runtime, Sweep

U_STEP = 0.5
"""Between two values of u, standard deviations, that are tried; BackdoorBench's."""


def check_allowance(method: str, allowance: float) -> None:
    """Refuse an allowance that is no share."""
    if not 0 <= allowance <= 1:
        raise InputError(f"{method}: the allowance must lie between 0 and 1, found {allowance}")


def switch_off_below(
    layers: Sequence[nn.BatchNorm2d], scores: Float[Tensor, "n"], value: float, bias: bool = True
) -> int:
    """Switch off the channels whose score is below a value; return how many these are.

    Args:
        layers: changed in place.
        scores: of all their channels, in order.
        value: of which a channel must have less.
        bias: see `switch_off`.
    """
    off = scores < value
    for layer, channels in zip(layers, off.split_with_sizes([layer.num_features for layer in layers])):
        switch_off(layer, channels.to(layer.weight.device), bias)
    return int(off.sum())


@torch.no_grad()
def sweep_below(
    name: str,
    model: nn.Module,
    layers: Sequence[nn.BatchNorm2d],
    scores: Float[Tensor, "n"],
    values: Sequence[float],
    held: ImageSet,
    allowance: float,
    runtime: Runtime,
    bias: bool = True,
) -> Sweep:
    """Switch off further and further, look at the accuracy on clean samples, and leave the model as it was.

    Args:
        name: of the quantity.
        model: holds the layers.
        layers: whose channels are switched off.
        scores: of all their channels, in order.
        values: ascending; below the first one there is no score.
        held: clean samples that nothing was learned from.
        allowance: accuracy on these that may be lost, 0 to 1.
        runtime: device and precision.
        bias: see `switch_off`.
    """
    before = [(layer.weight.clone(), layer.bias.clone()) for layer in layers]
    accuracy: list[float] = []
    gone = -1
    for value in values:
        count = switch_off_below(layers, scores, value, bias)
        # The same channels as before give the same accuracy.
        accuracy.append(accuracy[-1] if count == gone else accuracy_on(model, held, runtime))
        gone = count
    for layer, (weight, shift) in zip(layers, before):
        layer.weight.copy_(weight)
        layer.bias.copy_(shift)
    # Shares come from float32: two equal ones may differ in the last digits.
    return furthest(name, values, accuracy, accuracy[0] - allowance - 1e-6)


def standardized(scores: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Return by how many standard deviations each score lies above the mean; 0 for all if they do not differ."""
    mean = scores.mean()
    spread = scores.std(correction=min(1, len(scores) - 1))
    # Rounding is no difference.
    differ = spread > 1e-6 * mean.abs()
    return torch.where(differ, (scores - mean) / torch.where(differ, spread, 1.0), 0.0)


def prune_outliers(
    method: str,
    model: nn.Module,
    layers: Sequence[nn.BatchNorm2d],
    scores: Sequence[Float[Tensor, "c"]],
    u: float,
    held: ImageSet | None,
    allowance: float,
    runtime: Runtime,
    bias: bool = True,
) -> tuple[tuple[Sweep, ...], str]:
    """Switch off the channels whose score lies more than u standard deviations above the mean of their layer.

    Args:
        method: whom the note is about.
        model: holds the layers; changed in place.
        layers: whose channels are switched off.
        scores: of each layer's channels.
        u: used as it is without `held`.
        held: clean samples by which u is chosen instead: the least u whose accuracy is high enough.
        allowance: accuracy on these that may be lost, 0 to 1.
        runtime: device and precision.
        bias: see `switch_off`.

    Returns:
        The sweep over u, if there was one, and a note on how many channels went.
    """
    # The largest first: below minus u stand those above u.
    outlying = -torch.cat([standardized(one.double()) for one in scores])
    sweeps: tuple[Sweep, ...] = ()
    if held is not None:
        first = max(1, math.ceil(-float(outlying.min()) / U_STEP))
        values = [-U_STEP * number for number in range(first, -1, -1)]
        name = "standard deviations above the layer's mean (u)"
        sweep = sweep_below(name, model, layers, outlying, values, held, allowance, runtime, bias)
        u = abs(sweep.chosen)
        sweep = replace(
            sweep,
            values=tuple(abs(value) for value in reversed(sweep.values)),
            accuracy=sweep.accuracy[::-1],
            chosen=u,
            rule=f"{sweep.rule} The smaller the value, the more channels are switched off.",
        )
        sweeps = (sweep,)
    count = switch_off_below(layers, outlying, -u, bias)
    return sweeps, note_on(method, count, len(outlying))


def note_on(method: str, count: int, channels: int) -> str:
    """Return what a report says of a pruning."""
    return f"{method} switched off {count} of {channels} channels of batch normalization."
