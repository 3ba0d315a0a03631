"""Running a network over many images without training it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models.modes import evaluating
from unbackdoor.training.runtime import Runtime

BATCH = 500
"""Images a forward pass; more is no faster on two cores."""


@torch.no_grad()
def logits_of(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    runtime: Runtime,
) -> Float[Tensor, "n k"]:
    """Return the logits of all images, with the model in evaluation mode.

    The mode of every submodule is restored: batch normalisation that was frozen in training stays frozen.

    Args:
        model: images in [0, 1] to logits.
        images: uint8 pixels.
        runtime: device and precision.
    """
    results = []
    with evaluating(model):
        for start in range(0, len(images), BATCH):
            batch = runtime.layout(images[start : start + BATCH]).float() / 255
            with runtime.autocast():
                results.append(model(batch).float())
    return torch.cat(results)


def losses_of(model: nn.Module, data: ImageSet, runtime: Runtime) -> Float[Tensor, "n"]:
    """Return the cross-entropy of each image with the label that it has, in evaluation mode.

    In float32 whatever the precision: rows are ranked by it, and the surest answers differ least.

    Args:
        model: images in [0, 1] to logits.
        data: images and labels.
        runtime: device.
    """
    data = data.to(runtime.place)
    return F.cross_entropy(logits_of(model, data.images, runtime.in_float32()), data.labels, reduction="none")
