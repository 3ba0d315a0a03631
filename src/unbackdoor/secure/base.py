"""`SecureTrainer`: train a clean model on data that nobody vouches for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import nn

from unbackdoor.data import DefenderData
from unbackdoor.models import Network
from unbackdoor.training import History, Runtime, check_fits

Needed = Literal["clean"]
"""What of `DefenderData` a method may need beside the untrusted data."""


class Part(nn.Module):
    """What a method trains beside the model, and what can tell something of it."""

    def facts(self) -> dict[str, Any]:
        """Return what has to be known, beside the weights, to use it, as JSON values."""
        return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """What came of a secure training.

    Attributes:
        network: the model, in evaluation mode.
        history: what happened in the last stage of the training, with notes on the others.
        parts: what else was trained, by name; Trap-and-Replace's decoder is one.
    """

    network: Network
    history: History
    parts: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SecureTrainer(ABC):
    """Base of all methods that train on untrusted data: its fields are its options, nothing else is stored."""

    needs: ClassVar[frozenset[Needed]] = frozenset()
    """Beside the untrusted data; without it the method cannot work."""

    revision: ClassVar[int] = 0
    """Raised when the same options give other results than before: the bench then does not take old cells for done."""

    def train(
        self,
        build_model: Callable[[], Network],
        data: DefenderData,
        runtime: Runtime,
        resume: Path | None = None,
    ) -> Trained:
        """Return a model trained on the untrusted data.

        Args:
            build_model: returns a new, untrained network for these images, its weights always the same.
            data: what the defender has; the untrusted data, and clean samples if the method needs them.
            runtime: device, seed, budget.
            resume: file through which an interrupted run goes on; see `training.fit`.

        Raises:
            InputError: data that the method needs are missing or do not fit the network.
        """
        data.need_untrusted(type(self).__name__)
        check_fits(build_model(), data.untrusted, data.clean)
        trained = self.learn(build_model, data, runtime, resume)
        module: nn.Module
        for module in (trained.network, *trained.parts.values()):
            module.requires_grad_(True).eval()
        return trained

    @abstractmethod
    def learn(
        self, build_model: Callable[[], Network], data: DefenderData, runtime: Runtime, resume: Path | None
    ) -> Trained:
        """Train; called by `train`, which sees to the mode of the result and lets its weights be trained on."""
