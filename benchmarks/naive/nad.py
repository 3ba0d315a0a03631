"""NAD: a further pass of both networks for each feature map."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import NAD

from .common import Samples, train

CUTS = ("layer3.0", "layer4.0", "avgpool")
"""Stages before which the three maps are taken: the ends of the last three groups of PreActResNet18."""


def repair(method: NAD, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Fine-tune a teacher, then distil in place."""
    samples = Samples(clean, method.augmentation, device, seed)
    teacher = copy.deepcopy(model)
    train(teacher, samples, method.teacher_epochs, method.batch_size, method.learning_rate, cosine=False)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), method.learning_rate, momentum=0.9, weight_decay=5e-4)
    for _ in range(method.epochs):
        for images, labels in samples.batches(method.batch_size):
            optimizer.zero_grad()
            loss = distillation_loss(method, model, teacher, images, labels, CUTS)
            loss.backward()
            optimizer.step()
            loss.item()


def distillation_loss(
    method: NAD, model: Network, teacher: Network, images: Tensor, labels: Tensor, cuts: Sequence[str]
) -> Tensor:
    """Return the cross-entropy plus the weighted differences of attention."""
    loss = F.cross_entropy(model(images), labels)
    for cut, beta in zip(cuts, method.betas):
        ours = attention(model.split(cut)[0](images), method.power)
        with torch.no_grad():
            theirs = attention(teacher.split(cut)[0](images), method.power)
        loss = loss + beta * (ours - theirs).pow(2).mean()
    return loss


def attention(features: Tensor, power: float) -> Tensor:
    """Return where features are large."""
    total = features.abs().pow(power).sum(1)
    return total / (total.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-6)
