"""NPD: the whole frozen network runs for every pass, and changes are cut sample by sample."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.purify import NPD

from .common import Epochs, Samples, plainly

FOOLED = 0.6


def repair(
    method: NPD, model: Network, clean: ImageSet, seed: int, device: torch.device, epochs: Epochs = plainly
) -> None:
    """Hook the layer in and train it."""
    samples = Samples(clean, "none", device, seed)
    plug = insert(model, device)
    model.eval()
    optimizer = torch.optim.SGD(plug.parameters(), 1e-4)
    for _ in epochs(method.warm_up_epochs, model, optimizer, samples):
        for images, labels in samples.batches(method.batch_size):
            plug.train()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            plug.eval()
            loss.item()
    optimizer = torch.optim.SGD(plug.parameters(), method.learning_rate, momentum=0.9, weight_decay=5e-4)
    for _ in epochs(method.epochs, model, optimizer, samples):
        for images, labels in samples.batches(method.batch_size):
            optimizer.zero_grad()
            loss = polarizer_loss(method, model, images, labels)
            loss.backward()
            optimizer.step()
            loss.item()


def insert(model: Network, device: torch.device, place: str = "layer4.1.conv1") -> nn.Module:
    """Put a 1 x 1 convolution and batch normalisation before a convolution, by a hook; freeze the rest."""
    model.requires_grad_(False)
    target = model.body.get_submodule(place)
    layer = nn.Conv2d(target.in_channels, target.in_channels, 1, bias=False)
    nn.init.dirac_(layer.weight)
    plug = nn.Sequential(layer, nn.BatchNorm2d(target.in_channels)).to(device).eval()
    model.body.plug = plug

    def through(module: nn.Module, inputs: tuple[Any, ...]) -> Tensor:
        return plug(inputs[0])

    target.register_forward_pre_hook(through)
    return plug


def polarizer_loss(method: NPD, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of one batch, at changed images that are found for it."""
    clean_logits = model(images)
    answers = clean_logits.argmax(1).detach()
    guesses = second_choice(clean_logits, labels)
    logits = model((images + search(method, model, images, guesses)).clamp(0, 1))
    p = F.softmax(logits, 1)
    other = p.gather(1, second_choice(logits, labels).unsqueeze(1))
    guess = p.gather(1, guesses.unsqueeze(1))
    return (
        method.clean_weight * F.cross_entropy(clean_logits, labels)
        + method.keep_weight * F.cross_entropy(logits, answers)
        + method.other_weight * -torch.log(1.0001 - other).mean()
        + method.guess_weight * -torch.log(1.0001 - guess).mean()
    )


def second_choice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the likeliest class but the true one."""
    masked = logits.detach().clone()
    for row, label in enumerate(labels.tolist()):
        masked[row, label] = -torch.inf
    return masked.argmax(1)


def search(method: NPD, model: nn.Module, images: Tensor, guesses: Tensor) -> Tensor:
    """Return changes of images that lead to the guesses."""
    delta = torch.zeros_like(images)
    for _ in range(method.steps):
        delta.requires_grad_(True)
        loss = F.cross_entropy(model((images + delta).clamp(0, 1)), guesses)
        (gradient,) = torch.autograd.grad(loss, delta)
        delta = delta.detach() - method.step_size * gradient.sign()
        for row in range(len(delta)):
            norm = delta[row].norm().item()
            if norm > method.bound:
                delta[row] *= method.bound / norm
        with torch.no_grad():
            reached = model((images + delta).clamp(0, 1)).argmax(1) == guesses
        if reached.sum().item() > FOOLED * len(images):
            break
    return delta.detach()
