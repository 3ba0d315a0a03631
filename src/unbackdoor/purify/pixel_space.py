"""PixelSpace: retrain on one trigger that was searched for pixel by pixel. What MESA is compared with.

Qiao, Yang, Li, "Defending Neural Backdoors via Generative Distribution Modeling" (NeurIPS 2019), whose baseline it is:
as Neural Cleanse does, one trigger is optimised, by SGD, for a patch of known size that may stand anywhere. Then the
model is retrained as by MESA. The paper shows where this fails: the backdoor answers to more triggers than the one that
was found.

The authors search for the class that they are told, over 5 passes over a tenth of the clean samples. Here the target
is found by the same search for every class: it is the one whose patch leads most of the other images there, if that is
more than the threshold. The search counts steps; 30 are the 5 passes over 800 images in batches of 128.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.found import cut_short, kept_scan
from unbackdoor.purify.retraining import FixedPatches, Retraining, check_stamped
from unbackdoor.scan.patch_search import search_patches
from unbackdoor.training import History, Runtime, stage

SCAN = 0.5
"""Share of a budget that the search may take."""


@dataclass(frozen=True, kw_only=True)
class PixelSpace(Purifier):
    """Search for one patch a class, and retrain on the one that works best.

    Attributes:
        size: side of the trigger in pixels.
        steps: of the search, 1 or more.
        threshold: share of images of other classes that a patch must lead to its class, 0 to 1.
        epochs: passes over the clean samples in retraining.
        batch_size: images a step, in search and retraining.
        learning_rate: of SGD in retraining, constant.
        stamped: probability with which an image carries a trigger, above 0 and at most 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    size: int = 3
    steps: int = 30
    threshold: float = 0.5
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    stamped: float = 0.01
    augmentation: str = "none"

    def __post_init__(self) -> None:
        check_stamped("PixelSpace", self.stamped)
        if min(self.size, self.steps) < 1 or not 0 <= self.threshold <= 1:
            raise InputError(
                "PixelSpace: size and steps must be 1 or more and the threshold lie between 0 and 1, found"
                f" {self.size}, {self.steps} and {self.threshold}"
            )
        # What the retraining refuses, it refuses before the search.
        self._retraining()

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Search, and retrain `model` in place if a patch works (see `Purifier.repair`)."""
        clean = data.need_clean("PixelSpace")
        found = kept_scan(self.find, self, model, data, runtime.part(SCAN), stage(resume, "scan"))
        if found["patch"] is None:
            return History(epochs=0, notes=(found["note"],))
        triggers = FixedPatches(found["patch"][None])
        history = self._retraining().fit(model, clean, triggers, runtime.part(1 - SCAN), resume)
        return replace(history, notes=(found["note"],))

    def _retraining(self) -> Retraining:
        return Retraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            stamped=self.stamped,
            augmentation=self.augmentation,
        )

    def find(self, model: Network, data: DefenderData, runtime: Runtime, target: int | None = None) -> dict[str, Any]:
        """Return "patch", the one that works, its "target" (both None if none does), and a "note" for a report.

        Args:
            model: not changed.
            data: with clean samples.
            runtime: device, precision, seed and budget.
            target: the class, where it is known: its patch is then taken whatever its success.
        """
        clean = data.need_clean("PixelSpace").to(runtime.place)
        channels, height, width = clean.shape
        if self.size > min(height, width):
            raise InputError(f"a trigger of {self.size} pixels does not fit images of {height} x {width}")
        frozen = runtime.settle(copy.deepcopy(model)).eval().requires_grad_(False)
        # The same start for every class, so that classes differ by the model alone.
        start = torch.rand(1, channels, self.size, self.size, generator=runtime.generator("pixel space"))
        targets = torch.arange(clean.classes) if target is None else torch.tensor([target])
        starts = start.repeat(len(targets), 1, 1, 1)
        patches, success, steps = search_patches(frozen, clean, targets, starts, runtime, self.steps, self.batch_size)
        best, cut = int(success.argmax()), cut_short(steps < self.steps)
        share = f"{100 * float(success[best]):.0f} % of the other images to class {int(targets[best])}"
        if target is None and float(success[best]) <= self.threshold:
            note = f"The model is unchanged, since no patch works: the best leads {share}.{cut}"
            return {"patch": None, "target": None, "note": note}
        note = f"Retrained on one patch, which led {share}.{cut}"
        return {"patch": patches[best].cpu(), "target": int(targets[best]), "note": note}
