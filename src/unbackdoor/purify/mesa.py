"""MESA's defence: retrain on triggers drawn from the distribution that a scan recovered.

Qiao, Yang, Li, "Defending Neural Backdoors via Generative Distribution Modeling" (NeurIPS 2019). The scanner of that
name (see `unbackdoor.scan.MESA`) finds the target by a sweep and learns the triggers that lead there. The repair
fine-tunes on clean samples, some of which carry a new trigger each time and keep their true label (see `retraining`).
After one recovered trigger a backdoor still answers to others; a distribution covers them. If no class is suspected
there is nothing to retrain on, and the model is left as it is.

The authors' code is told the target, and cycles through the sub-models, one an epoch, which is the default here too.
The paper's staircase draws them by their weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.found import kept_scan, scan_note
from unbackdoor.purify.retraining import Retraining, check_stamped
from unbackdoor.scan import MESA as Sweep
from unbackdoor.scan import TriggerDistribution
from unbackdoor.training import History, Runtime, stage

SCAN = 0.7
"""Share of a budget that the scan may take."""

Draw = Literal["cycle", "density"]
"""Which sub-model a trigger comes from: each in its epoch, or by the weights of the staircase."""


@dataclass(frozen=True, kw_only=True)
class MESA(Purifier):
    """Retrain on generated triggers of the classes that MESA's sweep suspects.

    Attributes:
        sizes: sides of the trigger in pixels that are tried; one if it is known.
        betas: thresholds of the sub-models; see the scanner.
        steps: of the scan; its other options are the defaults of `scan.MESA`.
        draw: "cycle" (the sub-models take turns, one an epoch) or "density" (by the weights of the staircase).
        epochs: passes over the clean samples.
        batch_size: images a step.
        learning_rate: of SGD, constant.
        stamped: probability with which an image carries a trigger, above 0 and at most 1.
        augmentation: of the clean samples; see `Recipe`.
    """

    sizes: tuple[int, ...] = (3,)
    betas: tuple[float, ...] = (0.9, 0.8, 0.5)
    steps: int = 620
    draw: Draw = "cycle"
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    stamped: float = 0.01
    augmentation: str = "none"

    def __post_init__(self) -> None:
        check_stamped("MESA", self.stamped)
        if self.draw not in ("cycle", "density"):
            raise InputError(f"MESA: triggers are drawn by cycle or density, found {self.draw!r}")
        # What the scanner and the retraining refuse, they refuse before the scan.
        self._sweep()
        self._retraining()

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Scan, and retrain `model` in place if a class is suspected (see `Purifier.repair`)."""
        clean = data.need_clean("MESA")
        found = kept_scan(self._find, self, model, data, runtime.part(SCAN), stage(resume, "scan"))
        distributions = [TriggerDistribution.from_state(state) for state in found["distributions"]]
        if not distributions:
            return History(epochs=0, notes=(found["note"],))
        triggers = Recovered(distributions, self.draw)
        history = self._retraining().fit(model, clean, triggers, runtime.part(1 - SCAN), resume)
        return replace(history, notes=(found["note"],))

    def _sweep(self) -> Sweep:
        return Sweep(sizes=self.sizes, betas=self.betas, steps=self.steps)

    def _retraining(self) -> Retraining:
        return Retraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            stamped=self.stamped,
            augmentation=self.augmentation,
        )

    def _find(self, model: Network, data: DefenderData, runtime: Runtime) -> dict[str, Any]:
        """Return the distributions for the suspected classes, and what a report says of the scan."""
        finding = self._sweep().scan(model, data, runtime)
        chosen = [one for one in finding.distributions if one.target in finding.suspected]
        note = scan_note("Retrained on triggers that MESA drew", "MESA", finding)
        others = set(finding.suspected) - {one.target for one in chosen}
        if chosen and others:
            note += f" Not for class {', '.join(map(str, sorted(others)))}, of which no generator was learned."
        if finding.suspected and not chosen:
            note = f"The model is unchanged, since no generator was learned for a suspected class: {finding.reason}."
        return {"distributions": [one.state() for one in chosen], "note": note}


class Recovered:
    """Triggers of recovered distributions, one for each target.

    Args:
        distributions: of triggers of one size; each is drawn from as often as the others.
        draw: which sub-model a trigger comes from.
    """

    def __init__(self, distributions: Sequence[TriggerDistribution], draw: Draw) -> None:
        self.distributions, self.by = tuple(distributions), draw

    def identity(self) -> str:
        """Return a digest of generators and weights."""
        digest = hashlib.sha256(self.by.encode())
        for one in self.distributions:
            for value in (*one.generators.state_dict().values(), one.weights):
                digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def draw(self, count: int, epoch: int, draws: torch.Generator) -> Float[Tensor, "n c p p"]:
        """Return triggers, each of the target that is drawn for it."""
        targets = torch.randint(len(self.distributions), (count,), generator=draws)
        every = torch.stack([self._of(one, count, epoch, draws) for one in self.distributions])
        return every[targets, torch.arange(count)]

    def _of(self, one: TriggerDistribution, count: int, epoch: int, draws: torch.Generator) -> Tensor:
        return one.sample(count, draws, of=epoch % len(one.betas) if self.by == "cycle" else None)
