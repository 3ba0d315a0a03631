"""Universal perturbations: for each class, one change of all images that leads them there.

Moosavi-Dezfooli, Fawzi, Fawzi, Frossard, "Universal adversarial perturbations" (CVPR 2017), targeted, as scanners use
them since Wang et al. (ECCV 2020). Every network has them; one with a backdoor has a shorter one for its target. All
classes are sought together, by steps of steepest descent within a ball of the Euclidean norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.scan.passes import at_once, tiles
from unbackdoor.spectrum import smoothed
from unbackdoor.training import Runtime

FIRST_STEP, LAST_STEP = 0.5, 0.02
"""Lengths of a step as shares of the radius."""


def universal_perturbations(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    classes: int,
    radius: float,
    runtime: Runtime,
    steps: int = 30,
    batch_size: int = 64,
    only: Int[Tensor, "k"] | None = None,
    frequencies: int | None = None,
) -> Float[Tensor, "k c h w"]:
    """Return for each class a change of all images that leads them there, as far as one was found.

    Args:
        model: frozen, in evaluation mode, on the runtime's device; images in [0, 1] to logits.
        images: uint8 pixels.
        classes: of the model.
        radius: largest Euclidean norm of a change, pixel units.
        runtime: device, precision and seed.
        steps: of the search.
        batch_size: images a class and step.
        only: the classes that are sought; all if None.
        frequencies: along each side that a change has, the lowest ones; all if None.
    """
    draws = runtime.generator("universal perturbations")
    sought = torch.arange(classes) if only is None else only
    wanted = sought.to(runtime.place)
    found = torch.zeros(len(sought), *images.shape[1:], device=runtime.place)
    for step in range(steps):
        rows = torch.randint(len(images), (batch_size,), generator=draws)
        batch = images[rows.to(images.device)].to(runtime.place).float() / 255
        gradient = torch.zeros_like(found)
        with frozen_norms(model):
            for these, some in tiles(len(sought), batch_size, batch.shape, runtime):
                gradient[these] += _gradient(model, batch[some], found[these], wanted[these], runtime)
        if frequencies is not None:
            # Steepest descent among smooth changes: all that are added up are projected.
            gradient = smoothed(gradient, frequencies)
        length = radius * (LAST_STEP + (FIRST_STEP - LAST_STEP) * (1 - step / steps))
        found = within(found - length * gradient / norms(gradient), radius)
    return found


def _gradient(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    changes: Float[Tensor, "k c h w"],
    wanted: Int[Tensor, "k"],
    runtime: Runtime,
) -> Float[Tensor, "k c h w"]:
    """Return for each change the gradient of the cross-entropy of its class, summed over the images."""
    changes = changes.clone().requires_grad_(True)
    with runtime.autocast():
        logits = model(runtime.layout((images + changes[:, None]).clamp(0, 1).flatten(0, 1))).float()
    loss = F.cross_entropy(logits, wanted.repeat_interleave(len(images)), reduction="sum")
    return torch.autograd.grad(loss, changes)[0]


def within(changes: Float[Tensor, "k c h w"], radius: float) -> Float[Tensor, "k c h w"]:
    """Return the changes, those that are longer than the radius shortened to it."""
    shortened: Tensor = changes * (radius / norms(changes)).clamp_max(1)
    return shortened


def norms(changes: Float[Tensor, "k c h w"]) -> Float[Tensor, "k 1 1 1"]:
    """Return the Euclidean norm of each change, and never 0."""
    found: Tensor = torch.linalg.vector_norm(changes, dim=(1, 2, 3), keepdim=True)
    return found.clamp_min(torch.finfo(changes.dtype).tiny)


@torch.no_grad()
def log_odds(
    model: nn.Module,
    clean: ImageSet,
    wanted: Int[Tensor, "k"],
    changes: Float[Tensor, "k c h w"],
    runtime: Runtime,
) -> Float[Tensor, "k"]:
    """Return how sure the model is of the wanted class on images of other classes with each change.

    It is the mean over these images of log p / (1 - p), which tells apart what a share of successes does not: changes
    that all fail, and changes that all succeed.

    Args:
        model: frozen, in evaluation mode.
        clean: what is changed, on the runtime's device.
        wanted: class of each change.
        changes: of all images, pixel units.
        runtime: device and precision.
    """
    images = clean.images.float() / 255
    values = []
    with frozen_norms(model):
        for number, change in zip(wanted, changes):
            others = (clean.labels != number).nonzero().squeeze(1)
            if not len(others):
                values.append(torch.zeros((), device=clean.device))
                continue
            odds = []
            for part in torch.split(others, at_once(images.shape, runtime)):
                with runtime.autocast():
                    logits = model(runtime.layout((images[part] + change).clamp(0, 1))).float()
                odds.append(odds_of(logits)[:, number])
            values.append(torch.cat(odds).mean())
    return torch.stack(values)


def odds_of(logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Return log p / (1 - p) of each class, without loss of digits where p is nearly 1."""
    shares = logits.log_softmax(1)
    first = logits.argmax(1, keepdim=True)
    # All but the likeliest have at most one half, which rounding must not exceed.
    others = torch.log1p(-shares.exp().clamp_max(0.5))
    rest = logits.scatter(1, first, -torch.inf).logsumexp(1, keepdim=True) - logits.logsumexp(1, keepdim=True)
    return shares - others.scatter(1, first, rest)
