"""`LearningHook`: a network that makes triggers learns together with the classifier."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.attacks.criterion import Criterion
from unbackdoor.attacks.generator import LearnedTrigger
from unbackdoor.attacks.online import Online, OnlineHook
from unbackdoor.training import Batch, Recipe, Runtime


class LearningHook(OnlineHook):
    """Gives a part of the trigger an optimiser of its own (Adam), which steps with the classifier's.

    Args:
        options: of the attack.
        trigger: of training and testing.
        criterion: says what poisoned images are called.
        learned: the part of the trigger that learns.
        betas: of Adam.
    """

    trigger: LearnedTrigger

    def __init__(
        self,
        options: Online,
        trigger: LearnedTrigger,
        criterion: Criterion,
        learned: nn.Module,
        betas: tuple[float, float],
    ) -> None:
        super().__init__(options, trigger, criterion)
        self.learned = learned
        self.betas = betas
        self.kept: dict[str, Any] | None = None

    def rate(self, progress: float) -> float:
        """Return the learning rate when this share of the training is done; 0 once the trigger is fixed."""
        raise NotImplementedError

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Make the optimiser."""
        super().begin(model, recipe, runtime)
        self.learned.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.learned.parameters(), betas=self.betas)
        if self.kept:
            self.optimizer.load_state_dict(self.kept)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do a step of the classifier and, unless the trigger is fixed, one of what makes it."""
        rate = self.rate(batch.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = super().update(model, batch, optimizer)
        if rate > 0:
            self.optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the trigger's weights and the optimiser's state."""
        return {"trigger": self.trigger.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self.trigger.load_state_dict(state["trigger"])
        self.kept = state["optimizer"]
