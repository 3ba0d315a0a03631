"""ANP: three passes a step through the whole network, the gradients of all weights computed in each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import ANP

from .common import Samples
from .masks import MaskedNorm, clip, masked_copy, prune

THRESHOLDS = [number / 20 for number in range(19)]


def repair(method: ANP, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Learn masks and prune in place."""
    kept, held = hold_out(clean, seed)
    samples = Samples(kept, method.augmentation, device, seed)
    masked, layers = masked_copy(model)
    masked.train()
    optimizer = torch.optim.SGD([layer.mask for layer in layers], method.learning_rate, momentum=0.9)
    for _ in range(method.iterations):
        rows = [samples.draws.randrange(len(samples)) for _ in range(method.batch_size)]
        images, labels = samples.batch(rows)
        with torch.no_grad():
            for layer in layers:
                layer.weight_noise.uniform_(-method.epsilon, method.epsilon)
                layer.bias_noise.uniform_(-method.epsilon, method.epsilon)
        perturb(method, masked, layers, images, labels)
        optimizer.zero_grad()
        loss = mask_loss(method, masked, layers, images, labels)
        loss.backward()
        optimizer.step()
        clip(layers)
        loss.item()
    prune(model, layers, Samples(held, "none", device, seed), method.batch_size, THRESHOLDS, method.allowance)


def perturb(method: ANP, masked: nn.Module, layers: Sequence[MaskedNorm], images: Tensor, labels: Tensor) -> None:
    """Move the noise to where the loss is larger."""
    for layer in layers:
        layer.noisy = True
    for _ in range(method.steps):
        masked.zero_grad()
        F.cross_entropy(masked(images), labels).backward()
        with torch.no_grad():
            for layer in layers:
                for noise in (layer.weight_noise, layer.bias_noise):
                    noise.add_(noise.grad.sign(), alpha=method.epsilon / method.steps)


def mask_loss(method: ANP, masked: nn.Module, layers: Sequence[MaskedNorm], images: Tensor, labels: Tensor) -> Tensor:
    """Return the weighted losses without and with noise."""
    for layer in layers:
        layer.noisy = True
    worst = F.cross_entropy(masked(images), labels)
    for layer in layers:
        layer.noisy = False
    clean = F.cross_entropy(masked(images), labels)
    return method.alpha * clean + (1 - method.alpha) * worst
