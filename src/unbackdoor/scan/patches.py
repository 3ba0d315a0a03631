"""Square patches on images, at a place of its own for each image, and how a network answers to them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unbackdoor.models.derivatives import frozen_norms
from unbackdoor.scan.passes import at_once
from unbackdoor.training import Runtime

Loss = Callable[[Float[Tensor, "n k"], Int[Tensor, "n"]], Float[Tensor, "n"]]
"""From logits, and the numbers of the patches (in the order of `patches.flatten(0, 1)`), to each image's loss."""


def stamped(
    images: Float[Tensor, "n c h w"], patches: Float[Tensor, "n c p p"], places: Int[Tensor, "n 2"]
) -> Float[Tensor, "n c h w"]:
    """Return the images, each with its own patch; only the patches have a gradient.

    Args:
        images: in [0, 1].
        patches: that cover what was there.
        places: row and column of each patch's first pixel; the patch must lie within the image.
    """
    steps = torch.arange(patches.shape[-1], device=images.device)
    rows, columns = places[:, :1] + steps, places[:, 1:] + steps
    pixels = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).flatten(1)
    index = pixels[:, None].expand(-1, images.shape[1], -1)
    return images.flatten(2).scatter(2, index, patches.flatten(2).to(images.dtype)).view_as(images)


def draw_places(count: int, shape: tuple[int, int, int], size: int, draws: torch.Generator) -> Int[Tensor, "n 2"]:
    """Return places at which a patch of that size lies within images of that shape; all are equally likely."""
    rows = torch.randint(shape[1] - size + 1, (count,), generator=draws)
    columns = torch.randint(shape[2] - size + 1, (count,), generator=draws)
    return torch.stack([rows, columns], 1)


def patch_gradients(
    model: nn.Module,
    images: UInt8[Tensor, "b c h w"],
    patches: Float[Tensor, "s b c p p"],
    places: Int[Tensor, "b 2"],
    loss: Loss,
    runtime: Runtime,
) -> Float[Tensor, "s b c p p"]:
    """Return the gradient of each image's loss with respect to the patch on it.

    All rows of patches go onto the same images at the same places. The network sees them as one batch, which is cut
    only for memory.

    Args:
        model: frozen, in evaluation mode, on the runtime's device; images in [0, 1] to logits.
        images: uint8 pixels.
        patches: the rows, one patch an image in each.
        places: one an image.
        loss: of the logits.
        runtime: device and precision.
    """
    patches, found = patches.detach(), []
    with frozen_norms(model):
        for numbers in _passes(patches, images, runtime):
            row, column = numbers // len(images), numbers % len(images)
            plain = images[column].float() / 255
            part = patches[row, column].requires_grad_(True)
            with runtime.autocast():
                logits = model(runtime.layout(stamped(plain, part, places[column]))).float()
            found.append(torch.autograd.grad(loss(logits, numbers).sum(), part)[0])
    return torch.cat(found).view_as(patches)


@torch.no_grad()
def answers_to(
    model: nn.Module,
    images: UInt8[Tensor, "b c h w"],
    patches: Float[Tensor, "s b c p p"],
    places: Int[Tensor, "b 2"],
    runtime: Runtime,
) -> Int[Tensor, "s b"]:
    """Return the classes that the network calls the images with each row of patches (see `patch_gradients`)."""
    found = []
    for numbers in _passes(patches, images, runtime):
        row, column = numbers // len(images), numbers % len(images)
        plain = images[column].float() / 255
        with runtime.autocast():
            logits = model(runtime.layout(stamped(plain, patches[row, column], places[column])))
        found.append(logits.argmax(1))
    return torch.cat(found).view(patches.shape[:2])


def _passes(patches: Tensor, images: Tensor, runtime: Runtime) -> tuple[Int[Tensor, "n"], ...]:
    """Return the numbers of the patches (in the order of `patches.flatten(0, 1)`) of each pass."""
    every = torch.arange(patches.shape[0] * patches.shape[1], device=images.device)
    parts: tuple[Tensor, ...] = torch.split(every, at_once(images.shape, runtime))
    return parts


def success(answers: Int[Tensor, "s b"], targets: Int[Tensor, "s"], labels: Int[Tensor, "b"]) -> Float[Tensor, "s"]:
    """Return the share of the images of other classes that each row leads to its target; 0 to 1."""
    others = labels != targets[:, None]
    return ((answers == targets[:, None]) & others).sum(1) / others.sum(1).clamp_min(1)
