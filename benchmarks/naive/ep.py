"""EP: all that comes into each normalisation is kept for a batch, and a histogram is counted channel by channel."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import EP

from .common import Samples, norms
from .outliers import prune_outliers


def repair(method: EP, model: Network, clean: ImageSet, seed: int, device: torch.device, untrusted: ImageSet) -> None:
    """Prune in place."""
    rows = torch.randperm(len(untrusted), generator=torch.Generator().manual_seed(seed))[: method.images]
    found = largest_values(model, Samples(untrusted.subset(rows), "none", device, seed))
    scores = {layer: -entropies(values, method.width) for layer, values in found.items()}
    samples = Samples(clean, "none", device, seed)
    prune_outliers(model, scores, samples, method.u, method.choose, method.allowance, bias=False)


@torch.no_grad()
def largest_values(model: nn.Module, samples: Samples) -> dict[nn.BatchNorm2d, Tensor]:
    """Return the largest value over positions that each image brings into each channel."""
    features: dict[nn.BatchNorm2d, Tensor] = {}
    found: dict[nn.BatchNorm2d, list[Tensor]] = {layer: [] for layer in norms(model)}

    def note(layer: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        features[layer] = inputs[0].clone()

    handles = [layer.register_forward_pre_hook(note) for layer in found]
    model.eval()
    for images, _ in samples.batches(256, shuffle=False):
        model(images)
        for layer, values in features.items():
            found[layer].append(values.max(3).values.max(2).values)
    for handle in handles:
        handle.remove()
    return {layer: torch.cat(parts).T.double() for layer, parts in found.items()}


def entropies(values: Tensor, width: float) -> Tensor:
    """Return the entropy of each channel, one after the other; those that do not vary get the mean of the others."""
    standard = {
        channel: (one - one.mean()) / one.std()
        for channel, one in enumerate(values)
        if one.std() > 1e-6 * one.abs().max()
    }
    if not standard:
        return torch.zeros(len(values), dtype=torch.float64)
    least = min(one.min().item() for one in standard.values())
    found: dict[int, float] = {}
    for channel, one in standard.items():
        counts = Counter(int((value - least) / width) for value in one.tolist())
        found[channel] = -sum(count / len(one) * math.log(count / len(one)) for count in counts.values())
    mean = sum(found.values()) / len(found)
    return torch.tensor([found.get(channel, mean) for channel in range(len(values))], dtype=torch.float64)
