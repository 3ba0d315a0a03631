"""The attacker's own clean model, for attacks that look for their trigger in one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from unbackdoor.data import ImageSet
from unbackdoor.models import Network, load_model
from unbackdoor.training import Recipe, Runtime, check_fits, fit

RECIPE = Recipe(epochs=4, low_resolution=0.75)
"""A quarter of the usual schedule: the model has to know the classes, not to be the best."""


def clean_model(
    path: Path | None, train: ImageSet, build_model: Callable[[], Network], runtime: Runtime, work: Path | None
) -> Network:
    """Return a frozen clean model in evaluation mode: the one in the file, or one trained here.

    Args:
        path: checkpoint of a clean model for these images; None trains one on `train`.
        train: clean training images.
        build_model: see `Attack.prepare`.
        runtime: see `Attack.prepare`.
        work: see `Attack.prepare`.

    Raises:
        UnbackdoorError: the file cannot be read or does not fit the images.
    """
    if path is not None:
        network = load_model(path).network
        check_fits(network, train)
    else:
        network = build_model()
        fit(network, train, RECIPE, runtime, resume=state_in(work, "clean-model"), description="clean model")
    return runtime.settle(network).eval().requires_grad_(False)


def state_in(work: Path | None, name: str) -> Path | None:
    """Return the file for the state of a preparation, its folder made, or None."""
    if work is None:
        return None
    work.mkdir(parents=True, exist_ok=True)
    return work / f"{name}.pt"
