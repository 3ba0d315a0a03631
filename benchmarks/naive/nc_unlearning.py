"""NC unlearning: a trigger is searched for class after class, then unlearned on stamped samples."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import NCUnlearning
from unbackdoor.scan import NeuralCleanse

from .common import Samples

Trigger = tuple[Tensor, Tensor]
"""Mask (1, H, W) and pattern (C, H, W)."""


def repair(method: NCUnlearning, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Search, and fine-tune in place if a class is suspected."""
    samples = Samples(clean, "none", device, seed)
    options = NeuralCleanse(rounds=method.rounds)
    model.eval().requires_grad_(False)
    # The same start for all classes.
    start = [torch.rand(shape, device=device) for shape in ((1, *clean.shape[1:]), clean.shape)]
    found = [invert(options, model, samples, label, start) for label in range(clean.classes)]
    triggers = [found[label][0] for label in suspected(options, found)]
    model.requires_grad_(True).train()
    if not triggers:
        return
    samples.augmentation = method.augmentation
    optimizer = torch.optim.SGD(model.parameters(), method.learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, method.epochs))
    for _ in range(method.epochs):
        for images, labels in samples.batches(method.batch_size):
            for row in range(max(1, round(method.stamped * len(images)))):
                images[row] = stamp(images[row], triggers[row % len(triggers)])
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        schedule.step()


def stamp(images: Tensor, trigger: Trigger) -> Tensor:
    """Return images with the trigger."""
    mask, pattern = trigger
    return (1 - mask) * images + mask * pattern


def trigger_of(raw: list[Tensor]) -> Trigger:
    """Return mask and pattern in [0, 1]."""
    return (torch.tanh(raw[0]) + 1) / 2, (torch.tanh(raw[1]) + 1) / 2


def inversion_loss(
    model: nn.Module, raw: list[Tensor], images: Tensor, label: int, weight: float
) -> tuple[Tensor, float]:
    """Return what the search for one class minimises, and the share of images that its trigger leads there."""
    trigger = trigger_of(raw)
    logits = model(stamp(images, trigger))
    wanted = torch.full((len(images),), label, device=images.device)
    success = (logits.argmax(1) == wanted).float().mean().item()
    return F.cross_entropy(logits, wanted) + weight * trigger[0].sum(), success


def invert(
    options: NeuralCleanse, model: nn.Module, samples: Samples, label: int, start: list[Tensor]
) -> tuple[Trigger, float | None]:
    """Return the smallest trigger of a class that succeeds, and its size; no size if none does."""
    raw = [torch.atanh((one * 2 - 1) * 0.999).requires_grad_(True) for one in start]
    optimizer = torch.optim.Adam(raw, options.learning_rate, betas=(0.5, 0.9))
    weight, smallest = options.first_lambda, float("inf")
    best: Trigger | None = None
    good = bad = idle = 0
    rose = fell = False
    for _ in range(options.rounds):
        hits = []
        for _ in range(options.steps):
            rows = [samples.draws.randrange(len(samples)) for _ in range(options.batch_size)]
            images, _ = samples.batch(rows)
            optimizer.zero_grad()
            loss, success = inversion_loss(model, raw, images, label, weight)
            loss.backward()
            optimizer.step()
            hits.append(success)
        trigger = [one.detach().clone() for one in trigger_of(raw)]
        size, enough = trigger[0].sum().item(), statistics.mean(hits) >= options.success
        idle = 0 if enough and size < 0.99 * smallest else idle + 1
        if enough and size < smallest:
            smallest, best = size, (trigger[0], trigger[1])
        good, bad = (good + 1, 0) if enough else (0, bad + 1)
        if good >= options.patience:
            weight, good, rose = weight * 2, 0, True
        if bad >= options.patience:
            weight, bad, fell = weight / 2**1.5, 0, True
        if idle >= options.stop_patience and rose and fell:
            break
    return (best, smallest) if best else ((trigger[0], trigger[1]), None)


def suspected(options: NeuralCleanse, found: list[tuple[Trigger, float | None]]) -> list[int]:
    """Return the classes with an unusually small trigger, the smallest first."""
    if 2 * sum(size is not None for _, size in found) <= len(found):
        return []
    whole = float(found[0][0][0].numel())
    sizes = [max(0.1, whole if size is None else size) for _, size in found]
    logs = torch.tensor(sizes).log()
    median = statistics.median(logs.tolist())
    deviation = 1.4826 * statistics.median((logs - median).abs().tolist())
    index = [(median - value) / deviation if deviation else 0.0 for value in logs.tolist()]
    labels = [label for label in range(len(found)) if index[label] > options.threshold and found[label][1] is not None]
    return sorted(labels, key=lambda label: -index[label])
