"""MESA's sub-models, for all classes and all thresholds at once: one stack of networks, one batch for the model.

Each row of the stack is a class and a threshold beta, with a generator G and a network T. A step of G minimises

    - mean min(p, beta) - alpha I(z; G(z) + noise)        p: the model's probability of the class

over images with G(z) + noise on them, and a step of T then makes its estimate of I better. Rows do not see each other.
They share the images, places and noise of a step, so that they differ by the class and by beta alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.scan.information import corrected_objective, information, moved_average
from unbackdoor.scan.patches import answers_to, draw_places, patch_gradients, success
from unbackdoor.scan.stacked import NOISE, Generators, Statistics
from unbackdoor.scan.trigger_distribution import TriggerDistribution, generators_of
from unbackdoor.training import Runtime, affordable

JUDGED = 512
"""Pairs from which information is estimated in the end, and images at most on which success is measured."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How sub-models are trained; see `MESA` for what is not said here.

    Attributes:
        betas: one sub-model each.
        shape: channels, height and width of a trigger.
    """

    betas: tuple[float, ...]
    shape: tuple[int, int, int]
    steps: int
    batch_size: int
    learning_rate: float
    alpha: float
    noise: float
    hidden: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Draw:
    """What is drawn for one network's step, the same for all rows.

    Attributes:
        one: input of G.
        other: independent of it.
        noise: on the triggers.
    """

    one: Float[Tensor, "b z"]
    other: Float[Tensor, "b z"]
    noise: Float[Tensor, "b c p p"]


def train_sub_models(
    model: nn.Module, clean: ImageSet, targets: Sequence[int], schedule: Schedule, runtime: Runtime
) -> tuple[list[TriggerDistribution], int]:
    """Return the distribution of the triggers that lead to each target, and the steps that the budget allowed.

    Args:
        model: frozen, in evaluation mode, on the runtime's device.
        clean: samples, on that device.
        targets: classes.
        schedule: how.
        runtime: device, precision, seed and budget.
    """
    # The trial's networks are thrown away.
    trial = SubModels(model, clean, targets, schedule, runtime)
    steps = affordable(schedule.steps, 1, lambda: trial.step(*trial.drawn()), runtime)  # noqa: F821 - deleted below
    del trial
    stack = SubModels(model, clean, targets, schedule, runtime)
    with runtime.progress.bar("training trigger generators", steps) as advance:
        for _ in range(steps):
            stack.step(*stack.drawn())
            advance()
    return stack.distributions(), steps


class SubModels:
    """The state of the training, a row for each target and beta: those of the first target first."""

    def __init__(
        self, model: nn.Module, clean: ImageSet, targets: Sequence[int], schedule: Schedule, runtime: Runtime
    ) -> None:
        self.model, self.clean, self.schedule, self.runtime = model, clean, schedule, runtime
        self.classes = tuple(targets)
        place, count = runtime.place, len(schedule.betas)
        self.targets = torch.tensor(self.classes, device=place).repeat_interleave(count)
        self.limits = torch.tensor(schedule.betas, device=place).repeat(len(self.classes))
        start, rows = runtime.generator("mesa start"), len(self.targets)
        numbers = schedule.shape[0] * schedule.shape[1] * schedule.shape[2]
        self.generators = Generators(rows, schedule.shape, schedule.hidden, start).to(place)
        self.statistics = Statistics(rows, NOISE, numbers, schedule.hidden, start).to(place)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), schedule.learning_rate, betas=(0.5, 0.999), fused=True)
            for network in (self.generators, self.statistics)
        ]
        self.log_average: Float[Tensor, "s"] | None = None
        self.draws = runtime.generator("mesa", schedule.shape)

    def draw(self, count: int) -> Draw:
        """Draw inputs and noise."""
        one, other = torch.randn(2, count, NOISE, generator=self.draws).to(self.runtime.place)
        noise = self.schedule.noise * torch.randn(count, *self.schedule.shape, generator=self.draws)
        return Draw(one=one, other=other, noise=noise.to(self.runtime.place))

    def images(self, count: int) -> tuple[Int[Tensor, "b"], Int[Tensor, "b 2"]]:
        """Draw rows of the clean samples, and a place on each."""
        rows = torch.randint(len(self.clean), (count,), generator=self.draws)
        places = draw_places(count, self.clean.shape, self.schedule.shape[-1], self.draws)
        return rows.to(self.runtime.place), places.to(self.runtime.place)

    def drawn(self) -> tuple[UInt8[Tensor, "b c h w"], Int[Tensor, "b 2"], Draw, Draw]:
        """Draw what a step needs."""
        count = self.schedule.batch_size
        rows, places = self.images(count)
        return self.clean.images[rows], places, self.draw(count), self.draw(count)

    def step(self, images: UInt8[Tensor, "b c h w"], places: Int[Tensor, "b 2"], first: Draw, second: Draw) -> None:
        """Do a step of all generators, and then one of all T."""
        triggers = self.generators(first.one)
        noisy = triggers + first.noise
        uphill = self._lead(images, places, noisy) / len(images)
        bound = information(*self._values(first, noisy))
        # The part of the loss that goes through the model, by its gradient at these triggers.
        loss = (noisy * uphill).sum() - self.schedule.alpha * bound.sum()
        _descend(loss, self.generators, self.optimizers[0])
        with torch.no_grad():
            noisy = self.generators(second.one) + second.noise
        joint, independent = self._values(second, noisy)
        self.log_average = moved_average(self.log_average, independent)
        _descend(-corrected_objective(joint, independent, self.log_average).sum(), self.statistics, self.optimizers[1])

    def _lead(self, images: Tensor, places: Tensor, noisy: Tensor) -> Float[Tensor, "s b c p p"]:
        """Return the gradient of -min(p, beta) for each trigger."""

        def loss(logits: Tensor, numbers: Tensor) -> Tensor:
            row = numbers // len(images)
            found = logits.softmax(1).gather(1, self.targets[row, None]).squeeze(1)
            return -torch.minimum(found, self.limits[row])

        return patch_gradients(self.model, images, noisy, places, loss, self.runtime)

    def _values(self, draw: Draw, noisy: Tensor) -> tuple[Float[Tensor, "s b"], Float[Tensor, "s b"]]:
        """Return T of joint and of independent pairs."""
        flat = noisy.flatten(2)
        return self.statistics(draw.one, flat), self.statistics(draw.other, flat)

    @torch.no_grad()
    def distributions(self) -> list[TriggerDistribution]:
        """Return what was learned for each target; the generators go into evaluation mode."""
        draw = self.draw(JUDGED)
        self.generators.settle(draw.one)
        draw = self.draw(JUDGED)
        triggers = self.generators(draw.one)
        bound = information(*self._values(draw, triggers + draw.noise)).cpu()
        rows, places = self.images(JUDGED)
        answers = answers_to(self.model, self.clean.images[rows], triggers, places, self.runtime)
        shares = success(answers, self.targets, self.clean.labels[rows]).cpu()
        state, count = self.generators.state_dict(), len(self.schedule.betas)
        parts = [slice(count * number, count * (number + 1)) for number in range(len(self.classes))]
        return [
            TriggerDistribution(
                target=target,
                betas=self.schedule.betas,
                generators=generators_of({name: value[part] for name, value in state.items()}, self.schedule.shape),
                noise=self.schedule.noise,
                information=bound[part],
                success=shares[part],
            )
            for target, part in zip(self.classes, parts)
        ]


def _descend(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Do a step of one network alone."""
    parameters = list(network.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters)):
        parameter.grad = gradient
    optimizer.step()
