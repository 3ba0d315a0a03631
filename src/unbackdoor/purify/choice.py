"""Choosing how far to go by clean samples alone: what takes the place of the test data that published code looks at."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.training import Runtime, Sweep, logits_of


def accuracy_on(model: nn.Module, held: ImageSet, runtime: Runtime) -> float:
    """Return the share of images that the model, in evaluation mode, gets right."""
    held = held.to(runtime.place)
    return float((logits_of(model, held.images, runtime).argmax(1) == held.labels).float().mean())


def least_accuracy(keeps: float, before: float, classes: int) -> float:
    """Return the accuracy that must be left in a network that still works.

    Args:
        keeps: share of the accuracy that must be left, and twice the share of what of it is above chance: of two
            classes half of the accuracy is no more than chance.
        before: accuracy, 0 to 1.
        classes: of the data.
    """
    chance = 1 / classes
    return max(keeps * before, chance + keeps / 2 * (before - chance))


def furthest(name: str, values: Sequence[float], accuracy: Sequence[float], floor: float) -> Sweep:
    """Return the sweep with the furthest value that can be reached without the accuracy falling below the floor.

    Args:
        name: of the quantity.
        values: tried, from doing nothing to going too far.
        accuracy: at each, on held-out clean samples.
        floor: least accuracy, 0 to 1. If not even the first value reaches it, that one is chosen.
    """
    reached = 0
    while reached + 1 < len(values) and accuracy[reached + 1] >= floor:
        reached += 1
    rule = f"The furthest value before the accuracy on held-out clean samples falls below {100 * floor:.1f} %."
    return Sweep(name=name, values=tuple(values), accuracy=tuple(accuracy), chosen=values[reached], rule=rule)
