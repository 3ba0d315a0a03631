"""TSBD: lists of numbers sorted, three passes a step on a copy made anew, and a fine-tuning for every n."""

from __future__ import annotations

import copy
import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet, hold_out
from unbackdoor.models import Network
from unbackdoor.purify import TSBD
from unbackdoor.purify.tsbd import STEPS

from .common import Samples, accuracy, for_trials, furthest, renew_statistics

Change = tuple[str, int, float, list[float]]
"""A layer, a neuron of it, the sum of its weights' changes to four decimals, and the changes."""


def repair(method: TSBD, model: Network, clean: ImageSet, seed: int, device: torch.device) -> float:
    """Unlearn, then reset and fine-tune for every n, and leave in place what the n gives that ours would take.

    Returns:
        The seconds that the fine-tunings for the other n took.
    """
    kept, held = hold_out(clean, seed)
    kept_samples = Samples(kept, method.augmentation, device, seed)
    held_samples, few = Samples(held, "none", device, seed), Samples(for_trials(kept), "none", device, seed)
    changes = weight_changes(model, unlearned(method, model, kept_samples))
    suspect = copy.deepcopy(model.state_dict())
    accuracies = [accuracy(model, held_samples.batches(method.batch_size, shuffle=False))]
    for share in method.neurons:
        model.load_state_dict(suspect)
        reset(model, changes, share, method.weights)
        renew_statistics(model, few.batches(method.batch_size, shuffle=False))
        accuracies.append(accuracy(model, held_samples.batches(method.batch_size, shuffle=False)))
    chosen = (0.0, *method.neurons)[furthest(accuracies, method.keeps * accuracies[0])] or method.neurons[0]
    samples = Samples(clean, method.augmentation, device, seed)
    others, result = 0.0, suspect
    for share in method.neurons:
        start = time.perf_counter()
        model.load_state_dict(suspect)
        reset(model, changes, share, method.weights)
        fine_tune(method, model, samples)
        if share == chosen:
            result = copy.deepcopy(model.state_dict())
        else:
            others += time.perf_counter() - start
    model.load_state_dict(result)
    return others


def unlearned(method: TSBD, model: nn.Module, samples: Samples) -> nn.Module:
    """Return a copy that has climbed the loss down to chance, which a further pass tells after each epoch."""
    forgetful = copy.deepcopy(model)
    optimizer = torch.optim.SGD(forgetful.parameters(), method.unlearning_rate, momentum=0.9)
    enough = max(0.1, 1 / len(set(samples.labels)))
    for _ in range(method.unlearning_epochs):
        forgetful.train()
        for images, labels in samples.batches(method.batch_size, shuffle=False):
            optimizer.zero_grad()
            loss = -F.cross_entropy(forgetful(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        if accuracy(forgetful, samples.batches(method.batch_size, shuffle=False)) <= enough:
            break
    return forgetful


def weight_changes(before: nn.Module, after: nn.Module) -> list[Change]:
    """Return the changes of all neurons, those that changed most first."""
    ends = dict(after.named_modules())
    changes: list[Change] = []
    for name, module in before.named_modules():
        if not isinstance(module, nn.Conv2d) or "shortcut" in name:
            continue
        for neuron in range(module.out_channels):
            difference = (ends[name].weight[neuron] - module.weight[neuron]).abs()
            changes.append((name, neuron, round(difference.sum().item(), 4), difference.flatten().tolist()))
    return sorted(changes, key=lambda change: -change[2])


@torch.no_grad()
def reset(model: nn.Module, changes: list[Change], neurons: float, weights: float) -> None:
    """Set the weights that changed most to 0, in the neurons that changed most."""
    chosen = changes[: int(neurons * len(changes))]
    pool = sorted((value for _, _, _, values in chosen for value in values), reverse=True)
    if not chosen or not int(weights * len(pool)):
        return
    threshold = pool[int(weights * len(pool)) - 1]
    modules = dict(model.named_modules())
    for name, neuron, _, values in chosen:
        weight = modules[name].weight
        off = torch.tensor([value >= threshold for value in values], device=weight.device)
        weight[neuron] = weight[neuron].masked_fill(off.view_as(weight[neuron]), 0)


def fine_tune(method: TSBD, model: nn.Module, samples: Samples) -> None:
    """Fine-tune so that gradients stay small."""
    optimizer = torch.optim.SGD(model.parameters(), method.learning_rate, momentum=0.9)
    model.train()
    epochs = math.ceil(method.epochs * max(1, STEPS / math.ceil(len(samples) / method.batch_size)))
    for _ in range(epochs):
        for images, labels in samples.batches(method.batch_size, shuffle=False):
            for parameter, gradient in zip(model.parameters(), gradients(method, model, images, labels)):
                parameter.grad = gradient
            optimizer.step()
            # To log the loss after the step; this is also the pass that moves the running statistics.
            F.cross_entropy(model(images), labels).item()


def gradients(method: TSBD, model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Return the mean of the gradients at the weights and a step further up, tensor by tensor."""
    twin = copy.deepcopy(model)
    twin.zero_grad()
    F.cross_entropy(twin(images), labels).backward()
    first = [parameter.grad.clone() for parameter in twin.parameters()]
    with torch.no_grad():
        for parameter, gradient in zip(twin.parameters(), first):
            if gradient.norm() > 0:
                parameter.add_(method.radius * gradient / gradient.norm())
    twin.zero_grad()
    F.cross_entropy(twin(images), labels).backward()
    second = [parameter.grad for parameter in twin.parameters()]
    return [(1 - method.alpha) * one + method.alpha * other for one, other in zip(first, second)]
