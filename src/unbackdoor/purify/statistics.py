"""Running statistics of batch normalisation: kept as they are, or counted anew."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from unbackdoor.training import Runtime
from unbackdoor.training.inference import BATCH

RENEWAL = 1024
"""Images, at most, by which running statistics are counted anew for a model that is only tried."""


def for_trials(images: UInt8[Tensor, "n c h w"]) -> UInt8[Tensor, "m c h w"]:
    """Return the images by which the statistics of models that are only tried are counted: at most `RENEWAL`.

    Every k-th, since samples may lie sorted by class.
    """
    return images[:: math.ceil(len(images) / RENEWAL)]


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch normalisation use the statistics of the batch without updating the running ones."""
    layers = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    # The count of batches decides the weight of the next one where momentum is None.
    counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
    kept = [count.clone() for count in counts]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
        for count, value in zip(counts, kept):
            count.copy_(value)


@torch.no_grad()
def renew_statistics(model: nn.Module, images: UInt8[Tensor, "n c h w"], runtime: Runtime) -> None:
    """Let batch normalisation's running statistics be those of these images; the model is left in evaluation mode.

    They are counted in float32 whatever the precision: what stands in the model afterwards decides all its answers.
    """
    model.eval()
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        # Without one it is the plain average over all batches.
        layer.momentum = None
        layer.train()
    try:
        for part in images.tensor_split(math.ceil(len(images) / BATCH)):
            model(runtime.layout(part).float() / 255)
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
            layer.eval()
