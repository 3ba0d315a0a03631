"""MCR: weights of the curve computed tensor by tensor, and eleven points looked at."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import MCR

from .common import Samples, accuracy, for_trials, renew_statistics, train


def repair(method: MCR, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Train end and curve, and leave the chosen point of it in place."""
    kept, held = hold_out(clean, seed)
    samples = Samples(kept, method.augmentation, device, seed)
    judges, few = Samples(held, "none", device, seed), Samples(for_trials(kept), "none", device, seed)
    end = copy.deepcopy(model)
    train(end, samples, method.end_epochs, method.batch_size, method.learning_rate)
    ends = [{name: one.detach().clone() for name, one in network.named_parameters()} for network in (model, end)]
    bend = {name: nn.Parameter((ends[0][name] + ends[1][name]) / 2) for name in ends[0]}
    optimizer = torch.optim.SGD(bend.values(), method.learning_rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, method.epochs))
    model.train()
    for _ in range(method.epochs):
        for images, labels in samples.batches(method.batch_size):
            optimizer.zero_grad()
            weights = at(ends[0], bend, ends[1], samples.draws.random())
            loss = F.cross_entropy(torch.func.functional_call(model, weights, (images,)), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        schedule.step()
    accuracies = []
    for number in range(11):
        put(model, at(ends[0], bend, ends[1], number / 10), few, method.batch_size)
        accuracies.append(accuracy(model, judges.batches(method.batch_size, shuffle=False)))
    floor = max(accuracies[1:-1]) - method.allowance - 1e-6
    good = [number for number in range(1, 10) if accuracies[number] >= floor]
    chosen = min(good, key=lambda number: (abs(number - 5), -number))
    put(model, at(ends[0], bend, ends[1], chosen / 10), Samples(kept, "none", device, seed), method.batch_size)


def at(start: dict[str, Tensor], bend: dict[str, Tensor], end: dict[str, Tensor], t: float) -> dict[str, Tensor]:
    """Return the weights at t."""
    return {name: (1 - t) ** 2 * start[name] + 2 * t * (1 - t) * bend[name] + t**2 * end[name] for name in start}


def put(model: nn.Module, weights: dict[str, Tensor], samples: Samples, batch_size: int) -> None:
    """Give the model these weights, and the statistics that belong to them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    renew_statistics(model, samples.batches(batch_size, shuffle=False))
