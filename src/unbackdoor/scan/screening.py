"""Which classes are worth a search, where there are too many to search them all.

The target of a backdoor is a class that all images are led to easily. A few steps of steepest descent on a few images
tell that badly, but for all classes at once and at a small part of a search's cost: the classes to which they lead best
are searched in earnest. So the cost of a scan grows by these few steps a class, and not by a search a class.
"""

from __future__ import annotations

import math
import time

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unbackdoor.data import ImageSet, draw_clean
from unbackdoor.scan.passes import at_once
from unbackdoor.scan.universal import log_odds, universal_perturbations
from unbackdoor.training import Runtime

RADIUS = 0.75 / 32
"""Of a universal perturbation, pixel units, as a root mean square over the places of the image."""
STEPS, IMAGES, JUDGES = 6, 8, 16
"""Of the descent: steps, images a class and step; and the images by which classes are compared."""

LEAST_LEFT = 1e-3
"""Of a budget that is spent when the classes are chosen."""


def worth_searching(
    model: nn.Module, clean: ImageSet, most: int, runtime: Runtime, frequencies: int | None = None
) -> tuple[Int[Tensor, "m"], Runtime]:
    """Return the classes to search, ascending, all if there are not more than `most`; and a runtime with what is left
    of the budget.

    Args:
        model: frozen, in evaluation mode, on the runtime's device.
        clean: on the runtime's device.
        most: classes to return, 1 or more.
        runtime: device, precision and seed.
        frequencies: along each side that a change has, the lowest ones; all if None.
    """
    everything = torch.arange(clean.classes, device=clean.device)
    if clean.classes <= most:
        return everything, runtime
    began = time.perf_counter()
    radius = RADIUS * math.sqrt(clean.shape[1] * clean.shape[2])
    judges = draw_clean(clean, JUDGES, runtime.seed)
    odds = []
    # In parts, as all changes of many classes would fill the memory too.
    for part in torch.split(everything, max(1, at_once(clean.shape, runtime) // IMAGES)):
        found = universal_perturbations(
            model, clean.images, clean.classes, radius, runtime, STEPS, IMAGES, part, frequencies
        )
        odds.append(log_odds(model, judges, part, found, runtime))
    classes = torch.cat(odds).topk(most).indices.sort().values
    if runtime.budget is None:
        return classes, runtime
    spent = (time.perf_counter() - began) / (60 * runtime.budget)
    return classes, runtime.part(max(LEAST_LEFT, 1 - spent))


def for_all(index: Float[Tensor, "m"], searched: Int[Tensor, "m"], classes: int) -> Float[Tensor, "k"]:
    """Return an anomaly index for all classes: that of a class that was not searched is the least of the others."""
    everything = index.new_full((classes,), float(index.min()))
    everything[searched.to(index.device)] = index
    return everything
