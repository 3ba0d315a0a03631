"""What attacks prepare before the victim is trained: models of their own, and triggers searched in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.base import Given
from unbackdoor.data import ImageSet
from unbackdoor.models import Network, load_model
from unbackdoor.training import Hook, Recipe, Runtime, check_fits, enough_epochs, fit

Penalty = Callable[[Float[Tensor, "b c h w"]], Float[Tensor, ""]]
"""What a search of a trigger pays for triggered images, beside their cross-entropy."""

RECIPE = Recipe(epochs=4, low_resolution=0.75)
"""Of a clean model, a quarter of the usual schedule: it has to know the classes, not to be the best."""

LEAST_STEPS = 200
"""Of a clean model: of few images the recipe's epochs are too few to learn the classes."""
GENTLE = 0.05
"""Learning rate of a clean model of few images."""

STATES = ("clean-model.pt", "masks.pt", "encoder.pt", "kept-attack.safetensors", "kept-images.safetensors")
"""The files that attacks may leave in the folder for their work."""


def prepare(
    model: nn.Module,
    train: ImageSet,
    recipe: Recipe,
    runtime: Runtime,
    hook: Hook | None,
    work: Path | None,
    name: str,
) -> None:
    """Train a model that the attack needs.

    A budget does not shorten this: it is for the victim.

    Args:
        model: what is trained.
        train: on what.
        recipe: how.
        runtime: see `Attack.prepare`.
        hook: see `fit`.
        work: see `Attack.prepare`.
        name: of the model, for the progress bar and the file of its state.
    """
    resume = None
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        resume = work / f"{name.replace(' ', '-')}.pt"
    fit(model, train, recipe, unhurried(runtime), hook=hook, resume=resume, description=name)


def unhurried(runtime: Runtime, device: Literal["auto", "cpu", "cuda"] | None = None) -> Runtime:
    """Return the runtime without its budget, on another device if one is named, and with the same threads as now."""
    return replace(runtime, budget=None, device=device or runtime.device, threads=torch.get_num_threads())


def clean_model(path: Path | None, given: Given) -> Network:
    """Return a frozen clean model in evaluation mode: the one in the file, or one trained here.

    Args:
        path: checkpoint of a clean model for these images; None trains one on them.
        given: see `Given`.

    Raises:
        UnbackdoorError: the file cannot be read or does not fit the images.
    """
    if path is not None:
        network = load_model(path).network
        check_fits(network, given.train)
    else:
        network = given.build_model()
        _begin_elsewhere(network, given.runtime.generator("clean model"))
        recipe = enough_epochs(RECIPE, len(given.train), LEAST_STEPS)
        if recipe != RECIPE:
            # A wide network does not survive the usual rate where it is reached within few steps.
            recipe = replace(recipe, learning_rate=GENTLE)
        prepare(network, given.train, recipe, given.runtime, None, given.work, "clean model")
    return given.runtime.settle(network).eval().requires_grad_(False)


def _begin_elsewhere(network: Network, draws: torch.Generator) -> None:
    """Shuffle the untrained weights: the attacker does not know with which ones the victim will begin.

    Their distribution, which each network chooses for itself, stays what it was.
    """
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                order = torch.randperm(weight.numel(), generator=draws)
                weight.copy_(weight.flatten()[order.to(weight.device)].view(weight.shape))


def descend(
    parameters: Tensor,
    changed: Callable[[Float[Tensor, "b c h w"]], Float[Tensor, "b c h w"]],
    bound: Callable[[], None],
    model: Network,
    train: ImageSet,
    target: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    draws: torch.Generator,
    runtime: Runtime,
    name: str,
    penalty: Penalty | None = None,
) -> None:
    """Move parameters of a trigger so that a model calls triggered images the target: Adam on the cross-entropy.

    Args:
        parameters: a leaf on the device that needs gradients; changed in place.
        changed: from images to triggered images, through the parameters.
        bound: called after each step, brings the parameters back to where they may be.
        model: frozen.
        train: images to trigger.
        target: class.
        steps: how many.
        batch_size: images a step.
        learning_rate: of Adam.
        draws: of the images.
        runtime: where.
        name: for the progress bar.
        penalty: of triggered images, added to the cross-entropy.
    """
    optimizer = torch.optim.Adam([parameters], lr=learning_rate)
    wanted = torch.full((batch_size,), target, device=runtime.place)
    with runtime.progress.bar(name, steps) as advance:
        for _ in range(steps):
            rows = torch.randint(len(train), (batch_size,), generator=draws)
            images = train.images[rows.to(train.device)].to(runtime.place).float() / 255
            triggered = runtime.layout(changed(images).clamp(0, 1))
            with runtime.autocast():
                loss = F.cross_entropy(model(triggered).float(), wanted)
                if penalty is not None:
                    loss = loss + penalty(triggered)
            (parameters.grad,) = torch.autograd.grad(loss, [parameters])
            optimizer.step()
            bound()
            advance()
