"""Gradients: how large they are while a model begins to learn clean samples.

Lin and others, "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes and Backdoor
Activeness" (NeurIPS 2024), find them larger in backdoored models than in clean ones, and call that how active neurons
are. `Weights` measures the same, layer by layer, beside what unlearning changes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.inspect.agreement import mean_interval
from unbackdoor.inspect.base import Figure, Insight, Inspection, Material
from unbackdoor.inspect.compared import REFERENCE, SUSPECT, models_of, side_by_side
from unbackdoor.models import Network
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit, stage


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNorms:
    """Gradients of the cross-entropy, before each step of fine-tuning.

    Attributes:
        total: Euclidean norm over all parameters, of each step.
        activeness: norm over a neuron's weights, the mean over the neurons of each layer, of each step.
    """

    total: Float[Tensor, "steps"]
    activeness: Float[Tensor, "steps layers"]


@dataclass(frozen=True, kw_only=True)
class Gradients(Inspection):
    """The norm of the gradient in early fine-tuning on clean images.

    Attributes:
        epochs: passes over the clean samples, 1 or more.
        learning_rate: of SGD, constant.
        batch_size: images a step.
    """

    title: ClassVar[str] = "Gradient norms"

    epochs: int = 3
    learning_rate: float = 0.01
    batch_size: int = 256

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"Gradients: fine-tuning takes 1 epoch or more, found {self.epochs}")

    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Fine-tune copies and watch (see `Inspection.inspect`)."""
        recipe = fine_tuning(self.epochs, self.batch_size, self.learning_rate, "none", "constant", 0.0)
        models = models_of(model, material, runtime)
        norms = {
            name: gradient_norms(
                one,
                material.clean,
                (),
                recipe,
                runtime.part(1 / len(models)),
                stage(resume, name),
                f"{name}: fine-tuning",
            )
            for name, one in models.items()
        }
        means = {name: mean_interval(one.total.tolist()) for name, one in norms.items()}
        ratio = gradient_ratio(norms[SUSPECT], norms[REFERENCE]) if REFERENCE in norms else None
        measured: dict[str, Any] = {
            name: {"gradient_norm": means[name], "gradient_norms": one.total.tolist()} for name, one in norms.items()
        }
        headline = (
            f"The mean norm of the suspect's gradient over the first {len(norms[SUSPECT].total)} steps of fine-tuning"
            f" is {means[SUSPECT]['value']:.3g}"
        )
        rows = [
            (
                "gradient norm",
                side_by_side(means, lambda mean: f"{mean['value']:.3g}  [{mean['low']:.3g}, {mean['high']:.3g}]"),
            )
        ]
        if ratio is not None:
            headline += f", {ratio['value']:.2f} times the reference's"
            ends = f"[{ratio['low']:.3g}, {ratio['high']:.3g}]"
            rows.append(("gradient norm, times the reference's", f"{ratio['value']:.2f}  {ends}"))
        return Insight(
            headline=f"{headline}.",
            suspicious="Gradients that are longer than those of a clean model of the same kind. Alone the norm says"
            " nothing: it depends on the network, its training and the images.",
            rows=rows,
            figures=[norms_figure(norms)],
            measured={**measured, "gradient_ratio": ratio},
            notes=["The interval of a gradient norm is over the steps of one run, which follow on each other."],
        )


def gradient_ratio(suspect: GradientNorms, reference: GradientNorms) -> dict[str, float]:
    """Return by which factor the suspect's gradients are longer: the geometric mean over steps on the same batches."""
    steps = min(len(suspect.total), len(reference.total))
    logs = (suspect.total[:steps].double().log() - reference.total[:steps].double().log()).tolist()
    return {name: math.exp(value) for name, value in mean_interval(logs).items()}


def norms_figure(norms: Mapping[str, GradientNorms]) -> Figure:
    """Return the norms of several models over the steps, to be drawn."""
    return Figure(
        title="Norm of the gradient in fine-tuning",
        explanation="Before each step, over all parameters, on a batch of clean samples.",
        marks="lines",
        series={name: ([*range(1, len(one.total) + 1)], one.total.tolist()) for name, one in norms.items()},
        x_title="step",
        y_title="gradient norm",
    )


def gradient_norms(
    model: Network,
    samples: ImageSet,
    names: Sequence[str],
    recipe: Recipe,
    runtime: Runtime,
    resume: Path | None,
    description: str,
) -> GradientNorms:
    """Return the norms while a copy of the model is fine-tuned.

    Args:
        model: not changed.
        samples: learned, with their labels.
        names: of layers with weights of which the first dimension counts neurons.
        recipe: of fine-tuning.
        runtime: where.
        resume: see `fit`.
        description: for the progress bar.
    """
    hook = _Watching(names)
    fit(copy.deepcopy(model), samples, recipe, runtime, hook=hook, resume=resume, description=description)
    rows = torch.stack(hook.rows).cpu()
    return GradientNorms(total=rows[:, 0], activeness=rows[:, 1:])


class _Watching(Hook):
    """The plain loop, which keeps a row for each step: the norm of all gradients, and the activeness of each layer."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.rows: list[Float[Tensor, "values"]] = []

    def identity(self) -> object:
        """Return the layers."""
        return "gradient norms", self.names

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the weights whose gradients are watched."""
        super().begin(model, recipe, runtime)
        self.weights = [model.get_parameter(f"{name}.weight") for name in self.names]
        # Those of an interrupted run come from a file.
        self.rows = [row.to(runtime.place) for row in self.rows]

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step, and keep the norms before it."""
        loss = self.backward(model, batch, optimizer)
        everything = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        total = torch.stack([gradient.float().norm() for gradient in everything]).norm()
        self.rows.append(torch.stack([total, *(_activeness(weight) for weight in self.weights)]))
        optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the rows."""
        return {"rows": torch.stack(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the rows."""
        self.rows = list(state["rows"])


def _activeness(weight: nn.Parameter) -> Float[Tensor, ""]:
    # A layer that the loss does not reach is not active.
    gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
    of_neurons: Tensor = torch.linalg.vector_norm(gradient.float().flatten(1), dim=1)
    return of_neurons.mean()
