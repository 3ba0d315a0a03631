"""Loss isolation: poisoned rows are learned first, so their loss is lowest early in training.

Li, Lyu, Koren, Lyu, Li, Ma, "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (NeurIPS 2021), the first
half of ABL. A network learns the data by local gradient ascent: where the mean loss L of a batch has fallen below
gamma, it is pushed back up,

    sign(L - gamma) L   (see `unbackdoor.training.bounded`),

and the rows whose loss is lowest afterwards, one in a hundred, are held poisoned: always, also in clean data.

Without a model of the caller's one is trained in that way. A model that is given is used as it is: the longer it was
trained, the less its losses say. Published code computes the losses of the rows one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.sift.base import check_share
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.quick_model import NETWORK
from unbackdoor.sift.row_sifter import RowSifter
from unbackdoor.training import Recipe, Runtime, fit, losses_of, new_network, stage
from unbackdoor.training.bounded import Bounded


@dataclass(frozen=True, kw_only=True)
class LossIsolation(RowSifter):
    """Score rows by how low their loss is early in training.

    Attributes:
        poisoned_share: of the rows with the lowest losses, held poisoned.
        epochs: of training, where no model is given.
        learning_rate: of its SGD, constant.
        gamma: loss below which a batch is pushed back up, 0 or more; 0 trains as usual.
    """

    poisoned_share: float = 0.01
    epochs: int = 20
    learning_rate: float = 0.01
    gamma: float = 0.5

    # Since the bound is of a batch, and losses are in float32.
    revision: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_share("LossIsolation", poisoned_share=self.poisoned_share)
        if not 0 <= self.gamma < math.inf:
            raise InputError(f"LossIsolation: gamma must be 0 or more, found {self.gamma}")
        self._recipe()

    def _recipe(self) -> Recipe:
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=1e-4,
            schedule="constant",
            label_smoothing=0.0,
            ema=0.0,
            augmentation="crop-flip",
            low_resolution=0.0,
        )

    def learn(self, rows: ImageSet, runtime: Runtime, resume: Path | None) -> Network:
        """Train a network by local gradient ascent (see `Sifter.learn`)."""
        model = new_network(NETWORK, rows, runtime)
        hook = Bounded(self.gamma)
        state = stage(resume, "ascent")
        fit(model, rows, self._recipe(), runtime, hook=hook, resume=state, description="gradient ascent")
        return model

    def shares(self) -> tuple[None, float]:
        """Return the option (see `RowSifter.shares`)."""
        return None, self.poisoned_share

    def measure(self, seen: Observed, model: Network) -> tuple[Float[Tensor, "n"], dict[str, int]]:
        """Return minus the loss of each row (see `RowSifter.measure`)."""
        return -losses_of(model, seen.rows, seen.runtime).cpu(), {}

    def reason(self, score: float) -> str:
        """Tell the loss (see `RowSifter.reason`)."""
        return f"loss {-score:.4g}"

    def told(self, poisoned: int) -> str:
        """Say that it is a share (see `RowSifter.told`)."""
        return f"the {poisoned} rows with the lowest loss are held poisoned, by their number alone"
