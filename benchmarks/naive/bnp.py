"""BNP: statistics of clean samples by a pass with hooks, and a divergence a channel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import BNP

from .common import Samples, norms
from .outliers import prune_outliers


def repair(method: BNP, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Prune in place."""
    kept, held = hold_out(clean, seed) if method.choose else (clean, clean)
    found = statistics(model, Samples(kept, "none", device, seed))
    scores = {layer: divergence(layer, *found[layer]) for layer in found}
    samples = Samples(held, "none", device, seed)
    prune_outliers(model, scores, samples, method.u, method.choose, method.allowance, bias=False)


@torch.no_grad()
def statistics(model: nn.Module, samples: Samples) -> dict[nn.BatchNorm2d, tuple[Tensor, Tensor]]:
    """Return mean and variance of what comes into each normalisation."""
    sums: dict[nn.BatchNorm2d, list[Any]] = {}

    def note(layer: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        values = inputs[0]
        old = sums.get(layer, [0, 0, 0])
        first, second = (some.sum((0, 2, 3), dtype=torch.float64) for some in (values, values.pow(2)))
        new = (first, second, values.numel() // values.shape[1])
        sums[layer] = [before + one for before, one in zip(old, new)]

    handles = [layer.register_forward_pre_hook(note) for layer in norms(model)]
    model.eval()
    for images, _ in samples.batches(256, shuffle=False):
        model(images)
    for handle in handles:
        handle.remove()
    return {
        layer: (total / count, (squares / count - (total / count).pow(2)) * count / (count - 1))
        for layer, (total, squares, count) in sums.items()
    }


def divergence(layer: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> Tensor:
    """Return the divergence of each channel, one after the other."""
    found = []
    for channel in range(layer.num_features):
        clean = variance[channel].item() + layer.eps
        running = layer.running_var[channel].item() + layer.eps
        shift = mean[channel].item() - layer.running_mean[channel].item()
        found.append(math.log(math.sqrt(running / clean)) + (clean + shift**2) / (2 * running) - 0.5)
    return torch.tensor(found)
