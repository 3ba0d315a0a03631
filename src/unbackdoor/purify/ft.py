"""FT: plain fine-tuning of all parameters on clean samples.

The baseline of all purification papers, with BackdoorBench's options: SGD 0.01, momentum 0.9, weight decay 5e-4, half a
cosine over 100 epochs, batches of 256, crops and flips. The last epoch is the result; published code that picks the
best epoch by test data is not followed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unbackdoor.data import DefenderData
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.training import History, Recipe, Runtime, fit


@dataclass(frozen=True, kw_only=True)
class FT(Purifier):
    """Fine-tune on clean samples.

    Attributes:
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, at the start of the cosine.
        augmentation: of the clean samples; see `Recipe`.
    """

    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    augmentation: str = "crop-flip"

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Fine-tune `model` in place (see `Purifier.repair`)."""
        recipe = fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation)
        return fit(model, data.need_clean("FT"), recipe, runtime, resume=resume, description="FT")


def fine_tuning(
    epochs: int,
    batch_size: int,
    learning_rate: float,
    augmentation: str,
    schedule: str = "cosine",
    weight_decay: float = 5e-4,
) -> Recipe:
    """Return the recipe of plain fine-tuning, which is also a stage of other methods (see `Recipe`)."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        nesterov=False,
        weight_decay=weight_decay,
        schedule=schedule,
        label_smoothing=0.0,
        ema=0.0,
        augmentation=augmentation,
        low_resolution=0.0,
    )
