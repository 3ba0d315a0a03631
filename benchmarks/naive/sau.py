"""SAU: both networks run on clean and changed images in each step of the search, weight gradients and all."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import SAU

from .common import Epochs, Samples, plainly


def repair(
    method: SAU, model: Network, clean: ImageSet, seed: int, device: torch.device, epochs: Epochs = plainly
) -> None:
    """Unlearn in place."""
    samples = Samples(clean, "none", device, seed)
    suspect = copy.deepcopy(model).eval()
    model.eval()
    optimizer = torch.optim.Adam(model.parameters(), method.learning_rate, amsgrad=True)
    for _ in epochs(method.rounds, model, optimizer, samples):
        for images, labels in samples.batches(method.batch_size):
            changed = search(method, model, suspect, images, labels)
            optimizer.zero_grad()
            loss = outer_loss(method, model, suspect, images, changed, labels)
            loss.backward()
            optimizer.step()
            loss.item()


def search(method: SAU, model: nn.Module, suspect: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return images that fool both models into the same answer, where they are found."""
    delta = torch.full_like(images, method.bound, requires_grad=True)
    for _ in range(method.steps):
        answers, suspect_answers = model(images).argmax(1), suspect(images).argmax(1)
        logits, suspect_logits = model(seen(method, images + delta)), suspect(seen(method, images + delta))
        fooled, suspect_fooled = logits.argmax(1) != answers, suspect_logits.argmax(1) != suspect_answers
        shared = fooled & suspect_fooled & (logits.argmax(1) == suspect_logits.argmax(1))
        fool = torch.zeros((), device=images.device)
        if (~fooled).sum() > 0:
            fool = fool - F.cross_entropy(logits[~fooled], labels[~fooled], reduction="sum")
        if (~suspect_fooled).sum() > 0:
            fool = fool - F.cross_entropy(suspect_logits[~suspect_fooled], labels[~suspect_fooled], reduction="sum")
        share = divergence(logits[~shared], suspect_logits[~shared]).sum()
        loss = (method.fool_weight * fool / 2 + method.share_weight * share) / len(images)
        if delta.grad is not None:
            delta.grad = None
        loss.backward()
        with torch.no_grad():
            delta -= method.step_size * delta.grad.sign()
            delta.clamp_(-method.bound, method.bound)
        if bool(shared.all()):
            break
    return seen(method, images + delta.detach())


def seen(method: SAU, images: Tensor) -> Tensor:
    """Return the changed images as the networks see them."""
    return images.clamp(0, 1) if method.valid_pixels else images


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each pair of answers."""
    p, q = F.softmax(logits, 1).clamp(min=1e-8), F.softmax(others, 1).clamp(min=1e-8)
    entropies = (p * p.log() + q * q.log()) / 2
    return (entropies - (p + q) / 2 * ((p + q) / 2).log()).sum(1)


def outer_loss(
    method: SAU, model: nn.Module, suspect: nn.Module, images: Tensor, changed: Tensor, labels: Tensor
) -> Tensor:
    """Return the loss that the model in repair descends."""
    clean_logits, logits = model(torch.cat([images, changed])).chunk(2)
    wanted, answers = suspect(changed).argmax(1), suspect(images).argmax(1)
    fooled = (wanted != labels) & (wanted != answers)
    p = F.softmax(logits, 1).gather(1, wanted.unsqueeze(1)).squeeze(1)[fooled]
    first = -torch.log(1e-6 + torch.clamp(1 - p, max=0.999))
    second = -torch.log(1 + 1e-6 - torch.clamp(p, min=0.001))
    unlearn = ((first + second) / 2).sum() / len(images)
    return method.clean_weight * F.cross_entropy(clean_logits, labels) + method.unlearn_weight * unlearn
