"""RNP: unlearn with a copy, recover with masks, all gradients computed, and prune."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import RNP

from .anp import THRESHOLDS
from .common import Samples
from .masks import clip, masked_copy, prune


def repair(method: RNP, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Unlearn, recover, and prune in place."""
    kept, held = hold_out(clean, seed)
    samples = Samples(kept, method.augmentation, device, seed)
    masked, layers = masked_copy(unlearned(method, model, samples))
    masked.train()
    optimizer = torch.optim.SGD([layer.mask for layer in layers], method.learning_rate, momentum=0.9)
    for _ in range(method.epochs):
        for images, labels in samples.batches(method.batch_size):
            masked.zero_grad()
            loss = method.alpha * F.cross_entropy(masked(images), labels)
            loss.backward()
            optimizer.step()
            clip(layers)
            loss.item()
    prune(model, layers, Samples(held, "none", device, seed), method.batch_size, THRESHOLDS, method.allowance)


def unlearned(method: RNP, model: nn.Module, samples: Samples) -> nn.Module:
    """Return a copy that has climbed the loss until its accuracy in an epoch is low enough."""
    forgetful = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(forgetful.parameters(), method.unlearning_rate, momentum=0.9, weight_decay=5e-4)
    for epoch in range(method.unlearning_epochs):
        for group in optimizer.param_groups:
            group["lr"] = method.unlearning_rate * (0.1 if 2 * epoch >= method.unlearning_epochs else 1.0)
        right = 0
        for images, labels in samples.batches(method.batch_size):
            optimizer.zero_grad()
            logits = forgetful(images)
            (-F.cross_entropy(logits, labels)).backward()
            nn.utils.clip_grad_norm_(forgetful.parameters(), 20.0)
            optimizer.step()
            right += (logits.argmax(1) == labels).sum().item()
        if right / len(samples) <= method.unlearned:
            break
    return forgetful
