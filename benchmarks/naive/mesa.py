"""MESA's sub-models, one after the other: what the batched training is timed beside.

Each has its own generator and network T, its own passes of the model, one place a batch, one PIL image at a time, and
the model's weights get gradients that nobody reads, as in published code. What is learned is as in ours (see
`unbackdoor.scan.mesa`), so that a step can be compared with it: information is that about triggers with noise, and T
does not end in a leaky ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor.data import ImageSet

from .common import Samples

NOISE, CHUNK = 64, 16


class Generator(nn.Module):
    """From noise to a trigger.

    Args:
        shape: of a trigger.
        hidden: features of a layer.
    """

    def __init__(self, shape: tuple[int, int, int], hidden: int) -> None:
        super().__init__()
        self.shape = shape
        self.fc1 = nn.Linear(CHUNK, hidden)
        self.fc2, self.fc3 = nn.Linear(hidden + CHUNK, hidden), nn.Linear(hidden + CHUNK, hidden)
        self.fc4 = nn.Linear(hidden + CHUNK, shape[0] * shape[1] * shape[2])
        self.norms = nn.ModuleList(nn.BatchNorm1d(hidden) for _ in range(3))

    def forward(self, noise: Tensor) -> Tensor:
        """Return a trigger for each noise."""
        one, two, three, four = noise.split(CHUNK, 1)
        features = F.leaky_relu(self.norms[0](self.fc1(one)), 0.2)
        features = F.leaky_relu(self.norms[1](self.fc2(torch.cat([features, two], 1))), 0.2)
        features = F.leaky_relu(self.norms[2](self.fc3(torch.cat([features, three], 1))), 0.2)
        return self.fc4(torch.cat([features, four], 1)).sigmoid().view(-1, *self.shape)


class Statistics(nn.Module):
    """MINE's network T.

    Args:
        numbers: in a trigger.
        hidden: features of a layer.
    """

    def __init__(self, numbers: int, hidden: int) -> None:
        super().__init__()
        self.fc_z, self.fc_v = nn.Linear(NOISE, hidden, bias=False), nn.Linear(numbers, hidden, bias=False)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.fc2, self.fc3 = nn.Linear(hidden, hidden), nn.Linear(hidden, 1)

    def forward(self, noise: Tensor, triggers: Tensor) -> Tensor:
        """Return T of each pair."""
        features = F.leaky_relu(self.fc_z(noise) + self.fc_v(triggers.flatten(1)) + self.bias, 0.2)
        return self.fc3(F.leaky_relu(self.fc2(features), 0.2)).squeeze(1)


@dataclass(kw_only=True)
class SubModel:
    """A generator and its T in training.

    Attributes:
        target: class that triggers are to lead to.
        beta: threshold.
        average: moving average of mean exp T.
    """

    model: nn.Module
    generator: Generator
    statistics: Statistics
    target: int
    beta: float
    alpha: float
    learning_rate: float
    average: Tensor | None = None

    def __post_init__(self) -> None:
        self.optimizers = [
            torch.optim.Adam(network.parameters(), self.learning_rate, betas=(0.5, 0.999))
            for network in (self.generator, self.statistics)
        ]

    def step(
        self, images: Tensor, place: tuple[int, int], first: tuple[Tensor, ...], second: tuple[Tensor, ...]
    ) -> None:
        """Do a step of G and one of T.

        Args:
            images: in [0, 1].
            place: row and column of the triggers.
            first: input of G, an independent one, and noise on the triggers.
            second: the same for the step of T.
        """
        noise, other, blur = first
        triggers = self.generator(noise) + blur
        (row, column), side = place, triggers.shape[-1]
        stamped = images.clone()
        stamped[:, :, row : row + side, column : column + side] = triggers
        found = self.model(stamped).softmax(1)[:, self.target]
        joint, independent = self.statistics(noise, triggers), self.statistics(other, triggers)
        information = joint.mean() - (independent.exp().mean() + 1e-8).log()
        loss = -found.clamp(max=self.beta).mean() - self.alpha * information
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
        noise, other, blur = second
        triggers = (self.generator(noise) + blur).detach()
        joint, independent = self.statistics(noise, triggers), self.statistics(other, triggers)
        now = independent.exp().mean()
        self.average = now.detach() if self.average is None else 0.999 * self.average + 0.001 * now.detach()
        loss = -(joint.mean() - (now + 1e-8).log() * (now / self.average).detach())
        self.optimizers[1].zero_grad()
        loss.backward()
        self.optimizers[1].step()
        loss.item()


def train(
    options: Any, model: nn.Module, clean: ImageSet, targets: list[int], size: int, seed: int, device: torch.device
) -> list[SubModel]:
    """Train a sub-model for each target and beta, one after the other.

    Args:
        options: a `scan.MESA`, of which only the options are read.
        model: in evaluation mode.
        clean: samples.
        targets: classes.
        size: side of a trigger.
        seed: of everything that is drawn.
        device: to compute on.
    """
    torch.manual_seed(seed)
    samples = Samples(clean, "none", device, seed)
    shape = (clean.shape[0], size, size)
    trained = []
    for target in targets:
        for beta in options.betas:
            one = SubModel(
                model=model,
                generator=Generator(shape, options.hidden).to(device),
                statistics=Statistics(shape[0] * size * size, options.hidden).to(device),
                target=target,
                beta=beta,
                alpha=options.alpha,
                learning_rate=options.learning_rate,
            )
            for _ in range(options.steps):
                images, _ = samples.batch([samples.draws.randrange(len(samples)) for _ in range(options.batch_size)])
                place = tuple(samples.draws.randrange(side - size + 1) for side in clean.shape[1:])
                drawn = [
                    (
                        *torch.randn(2, options.batch_size, NOISE, device=device),
                        options.noise * torch.randn(options.batch_size, *shape, device=device),
                    )
                    for _ in range(2)
                ]
                one.step(images, (place[0], place[1]), drawn[0], drawn[1])
            trained.append(one)
    return trained
