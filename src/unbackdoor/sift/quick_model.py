"""The quick model: trained on the untrusted data as they are, for sifters that are given no other.

It is not meant to be good, and must not be used for anything else: if the data are poisoned, it has the backdoor, and
that is what sifters need. Nothing is done that could blur a trigger: no augmentation, no smoothed labels, no average of
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.training import Recipe, Runtime, check_fits, enough_epochs, fit, new_network

RECIPE = Recipe(epochs=8, learning_rate=0.1, label_smoothing=0.0, ema=0.0, augmentation="none")
"""How it is trained; images at three quarters of their side in the first half, as in all our training."""

LEAST_STEPS = 200
"""Of training."""

NETWORK: partial[PreActResNet18] = partial(PreActResNet18, width=16)
"""What is trained."""


def quick_model(
    rows: ImageSet,
    runtime: Runtime,
    *,
    network: Callable[[int, int], nn.Module] = NETWORK,
    recipe: Recipe = RECIPE,
    resume: Path | None = None,
) -> Network:
    """Train a network on untrusted rows and return it.

    Where there are few rows, there are more epochs: `LEAST_STEPS` are taken at least.

    Args:
        rows: the untrusted data.
        runtime: device, seed, budget.
        network: what is trained.
        recipe: how.
        resume: see `training.fit`.
    """
    model = new_network(network, rows, runtime)
    check_fits(model, rows)
    fit(model, rows, enough_epochs(recipe, len(rows), LEAST_STEPS), runtime, resume=resume, description="quick model")
    return model
