"""How large gradients are while a model begins to learn clean samples, which TSBD calls how active its neurons are."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.training import Batch, Hook, Recipe, Runtime, fit


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNorms:
    """Gradients of the cross-entropy, before each step of fine-tuning.

    Attributes:
        total: Euclidean norm over all parameters, of each step.
        activeness: norm over a neuron's weights, the mean over the neurons of each layer, of each step.
    """

    total: Float[Tensor, "steps"]
    activeness: Float[Tensor, "steps layers"]


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
