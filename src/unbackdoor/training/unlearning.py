"""Unlearning clean samples, which TSBD and RNP begin with: gradient ascent until accuracy is low enough.

It is in float32 whatever the precision: small differences between weights are what it is done for.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.training.history import History
from unbackdoor.training.hook import Batch, Hook
from unbackdoor.training.loop import fit
from unbackdoor.training.recipe import Recipe
from unbackdoor.training.runtime import Runtime


def unlearned(
    model: Network,
    samples: ImageSet,
    recipe: Recipe,
    runtime: Runtime,
    *,
    enough: float,
    longest: float = math.inf,
    late: float = 1.0,
    resume: Path | None = None,
    description: str = "unlearning",
) -> tuple[Network, History]:
    """Return a copy of the model that has unlearned the samples, and how that went.

    Args:
        model: not changed.
        samples: unlearned with the labels that they have.
        recipe: how, and at most how long.
        runtime: where, and for how long; its precision is not used.
        enough: accuracy at which it ends, 0 to 1; that of the batches of an epoch as they were met.
        longest: norm of all gradients together to which they are cut, above 0.
        late: by which the rate is multiplied in the second half, above 0.
        resume: see `fit`.
        description: for the progress bar and the note.

    Returns:
        The copy, and a history with a note if accuracy was never low enough.
    """
    forgetful = copy.deepcopy(model)
    exact = runtime.in_float32()
    hook = Unlearning(enough, longest, late, exact)
    history = fit(forgetful, samples, recipe, exact, hook=hook, resume=resume, description=description)
    if hook.accuracy <= enough:
        return forgetful, history
    note = (
        f"{description} ended at an accuracy of {100 * hook.accuracy:.1f} % on clean samples, above the"
        f" {100 * enough:.1f} % wanted; what it tells of neurons is less sure."
    )
    return forgetful, replace(history, notes=(note,))


class Unlearning(Hook):
    """Climbs the cross-entropy, and ends with the epoch in which accuracy is low enough.

    Args:
        enough: see `unlearned`.
        longest: see `unlearned`.
        late: see `unlearned`.
        runtime: device.

    Attributes:
        accuracy: over the last epoch, counted while it went on.
    """

    def __init__(self, enough: float, longest: float, late: float, runtime: Runtime) -> None:
        self.enough, self.longest, self.late = enough, longest, late
        self.accuracy = 1.0
        self.right = torch.zeros((), device=runtime.place)
        self.seen = 0

    def identity(self) -> object:
        """Return the options."""
        return "unlearning", self.enough, self.longest, self.late

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the parameters, whose gradients are cut."""
        super().begin(model, recipe, runtime)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step uphill and return the loss before it."""
        with self.runtime.autocast():
            logits = model(batch.images)
            loss = F.cross_entropy(logits, batch.targets)
        self.right += (logits.detach().argmax(1) == batch.targets).sum()
        self.seen += len(batch.images)
        optimizer.zero_grad(set_to_none=True)
        (-loss).backward()  # type: ignore[no-untyped-call]
        if self.longest < math.inf:
            nn.utils.clip_grad_norm_(self.parameters, self.longest)
        if batch.progress >= 0.5:
            # Set anew for each step.
            for group in optimizer.param_groups:
                group["lr"] *= self.late
        optimizer.step()
        return loss.detach()

    def finished(self, model: nn.Module) -> bool:
        """Return whether accuracy in the epoch that was just done is low enough."""
        self.accuracy = float(self.right) / self.seen
        self.right.zero_()
        self.seen = 0
        return self.accuracy <= self.enough

    def state_dict(self) -> dict[str, Any]:
        """Return the accuracy of the last epoch."""
        return {"accuracy": self.accuracy}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the accuracy."""
        self.accuracy = state["accuracy"]
