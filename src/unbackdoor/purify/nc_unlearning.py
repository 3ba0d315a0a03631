"""Unlearning by Neural Cleanse: fine-tune on clean samples, some of which carry the trigger that a scan found.

Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks" (IEEE S&P 2019). The scanner (see `NeuralCleanse`) reconstructs a trigger for each class that it suspects. The
repair minimises the cross-entropy of clean samples, a share of which is stamped with it and keeps the true label: the
trigger then means nothing. If no class is suspected there is nothing to unlearn, and the model is left as it is.

BackdoorBench (a) fine-tunes one model and saves another, which is the backdoored one; (b) reads mask and pattern back
from pictures that were rescaled to their own minimum and maximum; (c) stamps a fixed fifth before crops and flips,
which move the trigger. Ours is the model that was fine-tuned; triggers stay the tensors that were found, and are
stamped after the augmentation, on other images each time.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.found import kept_scan, scan_note
from unbackdoor.purify.ft import fine_tuning
from unbackdoor.scan import NeuralCleanse
from unbackdoor.training import Batch, History, Hook, Recipe, Runtime, fit, stage

SCAN = 0.5
"""Share of a budget that the scan may take."""
MOST_CLASSES = 16
"""For which triggers are inverted: all are in one batch, whose memory grows with them."""


@dataclass(frozen=True, kw_only=True)
class NCUnlearning(Purifier):
    """Find triggers by Neural Cleanse, and fine-tune on clean samples that carry them.

    Attributes:
        rounds: of the scan; its other options are the defaults of `NeuralCleanse`, but that of more than 16 classes it
            searches those to which a short search leads best.
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, at the start of the cosine.
        stamped: share of each batch that carries a trigger, above 0 and at most 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    rounds: int = 80
    epochs: int = 100
    batch_size: int = 256
    learning_rate: float = 0.01
    stamped: float = 0.2
    augmentation: str = "crop-flip"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"NCUnlearning: rounds must be 1 or more, found {self.rounds}")
        if not 0 < self.stamped <= 1:
            raise InputError(f"NCUnlearning: the stamped share must be above 0 and at most 1, found {self.stamped}")
        # What the recipe refuses, it refuses before the scan.
        self._recipe()

    def _recipe(self) -> Recipe:
        return fine_tuning(self.epochs, self.batch_size, self.learning_rate, self.augmentation)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Scan, and fine-tune `model` in place if a class is suspected (see `Purifier.repair`)."""
        clean = data.need_clean("NC unlearning")
        found = _Found(**kept_scan(self._find, self, model, data, runtime.part(SCAN), stage(resume, "scan")))
        if not found.masks:
            return History(epochs=0, notes=(found.note,))
        part = runtime.part(1 - SCAN)
        hook = _Stamping(self, found)
        history = fit(model, clean, self._recipe(), part, hook=hook, resume=resume, description="NC unlearning")
        return replace(history, notes=(found.note,))

    def _find(self, model: Network, data: DefenderData, runtime: Runtime) -> dict[str, Any]:
        """Return what Neural Cleanse finds, as the fields of `_Found`."""
        finding = NeuralCleanse(rounds=self.rounds, most_classes=MOST_CLASSES).scan(model, data, runtime)
        # An inconclusive finding suspects nobody.
        chosen = [finding.reconstructions[number] for number in finding.suspected]
        return {
            "masks": [one.mask for one in chosen],
            "patterns": [one.pattern for one in chosen],
            "note": scan_note("Unlearned the triggers that Neural Cleanse reconstructed", "Neural Cleanse", finding),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class _Found:
    """Masks and patterns of the suspected classes, most suspicious first, and what a report says of them."""

    masks: list[Float[Tensor, "1 h w"]]
    patterns: list[Float[Tensor, "c h w"]]
    note: str


class _Stamping(Hook):
    """Puts triggers on the first images of each batch, which are drawn anew in each epoch."""

    def __init__(self, options: NCUnlearning, found: _Found) -> None:
        self.options = options
        self.masks, self.patterns = torch.stack(found.masks), torch.stack(found.patterns)

    def identity(self) -> object:
        """Return the options and a digest of the triggers."""
        content = torch.cat([self.masks.flatten(), self.patterns.flatten()]).cpu().numpy().tobytes()
        return (self.options, hashlib.sha256(content).hexdigest())

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Move the triggers to the device."""
        super().begin(model, recipe, runtime)
        self.masks, self.patterns = self.masks.to(runtime.place), self.patterns.to(runtime.place)

    def batch(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with triggers on a share of its images, each trigger in its turn; labels stay."""
        count = max(1, round(self.options.stamped * len(batch.images)))
        first = int(torch.randint(len(self.masks), (), generator=generator))
        turn = (torch.arange(count, device=batch.images.device) + first) % len(self.masks)
        stamped = torch.lerp(batch.images[:count], self.patterns[turn], self.masks[turn])
        return replace(batch, images=torch.cat([stamped, batch.images[count:]]))
