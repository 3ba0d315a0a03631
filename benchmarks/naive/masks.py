"""What ANP and RNP share: batch normalisation with masks and noise, and pruning channel by channel."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .common import Samples, accuracy, furthest, norms


class MaskedNorm(nn.BatchNorm2d):
    """Batch normalisation whose weight has a mask, and whose weight and bias may have noise."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.load_state_dict(norm.state_dict())
        self.to(norm.weight.device)
        self.mask = nn.Parameter(torch.ones_like(norm.weight))
        self.weight_noise = nn.Parameter(torch.zeros_like(norm.weight))
        self.bias_noise = nn.Parameter(torch.zeros_like(norm.weight))
        self.noisy = False

    def forward(self, features: Tensor) -> Tensor:
        """Return the normalised features."""
        weight, bias = self.mask * self.weight, self.bias
        if self.noisy:
            weight, bias = (self.mask + self.weight_noise) * self.weight, (1 + self.bias_noise) * self.bias
        if self.training:
            self.num_batches_tracked += 1
        return nn.functional.batch_norm(
            features, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
        )


def masked_copy(model: nn.Module) -> tuple[nn.Module, list[MaskedNorm]]:
    """Return a copy with masks in all batch normalisations, and these, in the order of the modules."""
    masked = copy.deepcopy(model)
    for name, module in list(masked.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, own = name.rpartition(".")
            setattr(masked.get_submodule(parent), own, MaskedNorm(module))
    return masked, [module for module in masked.modules() if isinstance(module, MaskedNorm)]


def clip(layers: Sequence[MaskedNorm]) -> None:
    """Keep the masks between 0 and 1."""
    with torch.no_grad():
        for layer in layers:
            layer.mask.clamp_(0, 1)


def prune(
    model: nn.Module,
    layers: Sequence[MaskedNorm],
    held: Samples,
    batch_size: int,
    thresholds: Sequence[float],
    allowance: float,
) -> None:
    """Set the weights of channels with small masks to 0, one at a time, as far as held-out accuracy allows."""
    masks = [(layer, channel, value) for layer, one in enumerate(layers) for channel, value in enumerate(one.mask)]
    masks = sorted(((layer, channel, value.item()) for layer, channel, value in masks), key=lambda one: one[2])
    before = copy.deepcopy(model.state_dict())
    accuracies, pruned = [accuracy(model, held.batches(batch_size, shuffle=False))], [0]
    position = 0
    for threshold in thresholds:
        while position < len(masks) and masks[position][2] < threshold:
            switch_off(model, *masks[position][:2])
            position += 1
        pruned.append(position)
        accuracies.append(accuracy(model, held.batches(batch_size, shuffle=False)))
    model.load_state_dict(before)
    for layer, channel, _ in masks[: pruned[furthest(accuracies, accuracies[0] - allowance - 1e-6)]]:
        switch_off(model, layer, channel)


def switch_off(model: nn.Module, layer: int, channel: int) -> None:
    """Set the weight of one channel to 0, by way of the whole state."""
    norm = norms(model)[layer]
    name = next(name for name, module in model.named_modules() if module is norm)
    state = model.state_dict()
    state[f"{name}.weight"][channel] = 0.0
    model.load_state_dict(state)
