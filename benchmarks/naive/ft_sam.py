"""FT-SAM: two passes a step, weights moved tensor by tensor."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import FTSAM

from .common import Samples, norms


def repair(method: FTSAM, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Fine-tune in place."""
    samples = Samples(clean, method.augmentation, device, seed)
    optimizer = torch.optim.SGD(model.parameters(), method.learning_rate, momentum=0.9, weight_decay=5e-4)
    model.train()
    number = 0
    for _ in range(method.epochs):
        for images, labels in samples.batches(method.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = method.learning_rate * (1 + math.cos(math.pi * number / 100)) / 2
            step(model, images, labels, optimizer, method.rho, method.label_smoothing).item()
            number += 1


def step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    rho: float,
    smoothing: float,
) -> Tensor:
    """Climb, take the gradient there, come back and descend; return the loss before."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels, label_smoothing=smoothing)
    loss.backward()
    with torch.no_grad():
        norm = torch.norm(torch.stack([torch.norm(p.abs() * p.grad) for p in model.parameters()]))
        climbs = []
        for p in model.parameters():
            climb = p.pow(2) * p.grad * (rho / (norm + 1e-12))
            p.add_(climb)
            climbs.append(climb)
    momenta = [layer.momentum for layer in norms(model)]
    for layer in norms(model):
        layer.momentum = 0.0
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels, label_smoothing=smoothing).backward()
    for layer, momentum in zip(norms(model), momenta):
        layer.momentum = momentum
    with torch.no_grad():
        for p, climb in zip(model.parameters(), climbs):
            p.sub_(climb)
    optimizer.step()
    return loss.detach()
