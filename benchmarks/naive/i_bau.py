"""I-BAU: lists of batches, and each gradient of the hypergradient by a backward pass of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import IBAU

from .common import Batches, Samples


def repair(method: IBAU, model: Network, clean: ImageSet, seed: int, device: torch.device) -> None:
    """Unlearn in place."""
    batches = list(Samples(clean, "none", device, seed).batches(method.batch_size))
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), method.learning_rate, amsgrad=True)
    for _ in range(method.rounds):
        delta = perturbation(method, model, batches)
        for images, labels in batches:
            optimizer.zero_grad()
            gradients = hypergradient(method, model, delta, (images, labels), batches[0])
            for parameter, gradient in zip(model.parameters(), gradients):
                parameter.grad = gradient
            optimizer.step()


def perturbation(method: IBAU, model: nn.Module, batches: Batches) -> Tensor:
    """Return the change of all images that one pass over the batches finds."""
    delta = torch.zeros_like(batches[0][0][:1], requires_grad=True)
    optimizer = torch.optim.SGD([delta], method.perturbation_rate)
    for images, _ in batches:
        with torch.no_grad():
            answers = model(images).argmax(1)
        optimizer.zero_grad()
        inner_loss(method, model, delta, images, answers).backward()
        optimizer.step()
    return delta.detach()


def inner_loss(method: IBAU, model: nn.Module, delta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Return what the perturbation minimises."""
    return -F.cross_entropy(model(images + delta), labels) + method.penalty * delta.pow(2).sum()


def hypergradient(
    method: IBAU, model: nn.Module, delta: Tensor, batch: tuple[Tensor, Tensor], first: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """Return the gradient of the outer loss, with what comes through the perturbation."""
    delta = delta.clone().requires_grad_(True)
    weights = list(model.parameters())
    (step,) = torch.autograd.grad(inner_loss(method, model, delta, *first), delta, create_graph=True)
    mapped = delta - method.map_rate * step
    images, labels = batch
    changed = images.clone()
    count = max(1, int(method.perturbed * len(images)))
    changed[:count] = images[:count] + delta
    outer = F.cross_entropy(model(changed), labels)
    (by_delta,) = torch.autograd.grad(outer, delta, retain_graph=True)
    direct = torch.autograd.grad(outer, weights, retain_graph=True)
    total = torch.zeros_like(by_delta)
    for _ in range(method.steps):
        (back,) = torch.autograd.grad(mapped, delta, total, retain_graph=True)
        total = back + by_delta
    through = torch.autograd.grad(mapped, weights, total, allow_unused=True)
    return [one if other is None else one + other for one, other in zip(direct, through)]
