"""MCR: mode connectivity repair.

Zhao, Chen, Das, Ramamurthy, Lin, "Bridging Mode Connectivity in Loss Landscapes and Adversarial Robustness" (ICLR
2020). Two models that are both accurate can be joined by a curve of accurate models; where the curve is learned from
clean samples alone, nothing keeps the backdoor alive between the ends. The ends are the suspect w_0 and, since a
defender has no second model, a copy w_1 fine-tuned on the clean samples. The curve is

    w(t) = (1 - t)^2 w_0 + 2 t (1 - t) b + t^2 w_1,    0 <= t <= 1,

and its bend b minimises the cross-entropy at a t that is drawn for each step. Batch normalisation's statistics belong
to one model: at each t they are computed from the clean samples.

The authors' program measures all along the curve, and BackdoorBench takes t = 0.1, near the suspect. Both ends may
carry the backdoor, so here it is the t nearest the middle whose accuracy on held-out clean samples is within
`allowance` of the best between the ends; nothing else that a defender can measure tells the points apart. Epochs, rate,
batches and weight decay of the curve are the authors', whose decay is on w(t) and here on b; their rate falls in a line
after half of the epochs, ours along half a cosine.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData, ImageSet, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.choice import accuracy_on
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.purify.statistics import for_trials, renew_statistics
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, Sweep, fit, stage

POSITIONS = tuple(number / 10 for number in range(11))
"""On the curve, at which models are tried; the ends are shown and never chosen."""
CHOICE = 0.1
"""Share of a budget that is left for trying them, which has no schedule to shorten."""


@dataclass(frozen=True, kw_only=True)
class MCR(Purifier):
    """Walk along a curve of accurate models from the suspect to a fine-tuned copy.

    Attributes:
        end_epochs: passes over the clean samples in which the copy is fine-tuned, 1 or more.
        epochs: passes over the clean samples in which the curve is trained.
        batch_size: images a step.
        learning_rate: of SGD, at the start of the cosine, for both.
        allowance: accuracy on held-out clean samples that may be lost for the middle of the curve, 0 to 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    end_epochs: int = 100
    epochs: int = 100
    batch_size: int = 128
    learning_rate: float = 0.01
    allowance: float = 0.02
    augmentation: str = "crop-flip"

    # Since statistics are counted in float32, those of positions that are tried by fewer images, and the end has draws
    # of its own.
    revision: ClassVar[int] = 3

    def __post_init__(self) -> None:
        if self.end_epochs < 1 or self.epochs < 1:
            raise InputError(
                f"MCR: epochs of the end and of the curve must be 1 or more, found {self.end_epochs} and {self.epochs}"
            )
        if not 0 <= self.allowance <= 1:
            raise InputError(f"MCR: the allowance must lie between 0 and 1, found {self.allowance}")

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Train end and curve, and leave the chosen point of it in `model` (see `Purifier.repair`)."""
        kept, held = hold_out(data.need_clean("MCR"), runtime.seed)
        share = self.end_epochs / (self.end_epochs + self.epochs)
        end = copy.deepcopy(runtime.settle(model))
        recipe = fine_tuning(self.end_epochs, self.batch_size, self.learning_rate, self.augmentation)
        part, resumed = runtime.part((1 - CHOICE) * share), stage(resume, "end")
        fit(end, kept, recipe, part, resume=resumed, description="MCR's end", names=("end",))
        curve = _Curve(model, end)
        part = runtime.part((1 - CHOICE) * (1 - share))
        recipe = replace(recipe, epochs=self.epochs, weight_decay=1e-4)
        history = fit(curve, kept, recipe, part, hook=_Position(), resume=resume, description="MCR")
        accuracy = _accuracy_along(curve, copy.deepcopy(model), kept, held, runtime)
        sweep = middle_most(POSITIONS, accuracy, self.allowance)
        put(model, curve.at(torch.tensor(sweep.chosen)))
        renew_statistics(model, kept.images, runtime)
        model.requires_grad_(True)
        return replace(history, sweeps=(sweep,))


class _Curve(nn.Module):
    """The models on the curve, as one module whose only trainable parameters are the bend.

    Args:
        start: the model at 0; frozen, and not copied.
        end: the model at 1.
    """

    position: Tensor

    def __init__(self, start: nn.Module, end: nn.Module) -> None:
        super().__init__()
        self.start = start.requires_grad_(False)
        self.names = [name for name, _ in start.named_parameters()]
        ends = [parameter.detach() for parameter in end.parameters()]
        self.end = nn.ParameterList([nn.Parameter(value.clone(), requires_grad=False) for value in ends])
        # On the straight line, which is where the authors begin too.
        middles = [(one.detach() + other) / 2 for one, other in zip(start.parameters(), ends)]
        self.bend = nn.ParameterList([nn.Parameter(value) for value in middles])
        self.register_buffer("position", torch.tensor(0.5))

    def at(self, position: Float[Tensor, ""]) -> list[Tensor]:
        """Return the weights at a position, in the order of the model's parameters."""
        return bezier(list(self.start.parameters()), list(self.bend), list(self.end), position)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return the logits of the model at the present position."""
        weights = dict(zip(self.names, self.at(self.position)))
        logits: Tensor = torch.func.functional_call(self.start, weights, (images,))
        return logits


class _Position(Hook):
    """Draws a position for each step."""

    def identity(self) -> object:
        """Return the method."""
        return "MCR"

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the curve itself."""
        super().begin(model, recipe, runtime)
        self.curve = model

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Move the curve to a position between 0 and 1; the images stay."""
        self.curve.get_buffer("position").fill_(float(torch.rand((), generator=generator)))
        return batch


def bezier(
    start: Sequence[Tensor], bend: Sequence[Tensor], end: Sequence[Tensor], position: Float[Tensor, ""]
) -> list[Tensor]:
    """Return (1 - t)^2 start + 2 t (1 - t) bend + t^2 end for each tensor.

    Args:
        start: at t = 0, any shapes.
        bend: of the same shapes.
        end: at t = 1, of the same shapes.
        position: t, 0 to 1.
    """
    rest = 1 - position
    return [rest**2 * a + 2 * position * rest * b + position**2 * c for a, b, c in zip(start, bend, end)]


def middle_most(positions: Sequence[float], accuracy: Sequence[float], allowance: float) -> Sweep:
    """Return the sweep with the position nearest the middle that is accurate enough; of two as near, the later.

    Args:
        positions: from 0 to 1, both of which are never chosen.
        accuracy: at each, on held-out clean samples.
        allowance: what may be missing to the best between the ends.
    """
    between = list(zip(positions, accuracy))[1:-1]
    # Shares come from float32: two equal ones may differ in the last digits.
    floor = max(share for _, share in between) - allowance - 1e-6
    good = [position for position, share in between if share >= floor]
    chosen = min(good, key=lambda position: (round(abs(position - 0.5), 6), -position))
    rule = (
        "The position nearest the middle, since both ends may carry the backdoor, whose accuracy on held-out clean"
        f" samples is at most {100 * allowance:g} points below the best between the ends."
    )
    return Sweep(
        name="position on the curve", values=tuple(positions), accuracy=tuple(accuracy), chosen=chosen, rule=rule
    )


@torch.no_grad()
def _accuracy_along(
    curve: _Curve, trial: nn.Module, kept: ImageSet, held: ImageSet, runtime: Runtime
) -> tuple[float, ...]:
    """Return the accuracy of the models at all positions; `trial` is a model of the same kind, which is used up."""
    found = []
    for position in POSITIONS:
        put(trial, curve.at(torch.tensor(position)))
        renew_statistics(trial, for_trials(kept.images), runtime)
        found.append(accuracy_on(trial, held, runtime))
    return tuple(found)


@torch.no_grad()
def put(model: nn.Module, weights: Sequence[Tensor]) -> None:
    """Give a model these weights, in the order of its parameters."""
    for parameter, value in zip(model.parameters(), weights):
        parameter.copy_(value)
