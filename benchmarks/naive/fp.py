"""FP: the whole network runs on held-out samples for every number of channels that is tried."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import FP

from .common import Samples, accuracy, furthest, train

STEP = 0.01


def repair(method: FP, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Prune the channels that the last layer reads, and fine-tune the rest, in place."""
    kept, held = hold_out(clean, seed)
    layer = last_layer(model)
    asleep = activity(model, layer, Samples(kept, "none", device, seed)).argsort(stable=True)
    channels = len(asleep)
    counts = [*range(0, channels, max(1, round(STEP * channels))), channels]
    samples = Samples(held, "none", device, seed)
    before = copy.deepcopy(model.state_dict())
    accuracies: list[float] = []
    for count in counts:
        model.load_state_dict(before)
        remove(layer, asleep[:count])
        accuracies.append(accuracy(model, samples.batches(256, shuffle=False)))
        if accuracies[-1] < (1 - method.tolerance) * accuracies[0]:
            break
    model.load_state_dict(before)
    off = asleep[: counts[furthest(accuracies, (1 - method.tolerance) * accuracies[0])]]
    remove(layer, off)
    # What has no gradient stays 0: weight decay and momentum leave it there.
    handle = layer.weight.register_hook(lambda gradient: gradient.index_fill(1, off, 0.0))
    samples = Samples(clean, method.augmentation, device, seed)
    train(model, samples, method.epochs, method.batch_size, method.learning_rate)
    handle.remove()


def last_layer(model: nn.Module) -> nn.Linear:
    """Return the last linear layer, which reads the channels."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@torch.no_grad()
def activity(model: nn.Module, layer: nn.Linear, samples: Samples) -> Tensor:
    """Return the mean absolute activation of what the layer reads."""
    read: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        read.append(inputs[0].abs())

    handle = layer.register_forward_pre_hook(note)
    model.eval()
    for images, _ in samples.batches(256, shuffle=False):
        model(images)
    handle.remove()
    return torch.cat(read).mean(0)


@torch.no_grad()
def remove(layer: nn.Linear, channels: Tensor) -> None:
    """Set what the layer makes of these channels to 0, one after the other."""
    for channel in channels.tolist():
        layer.weight[:, channel] = 0.0
