"""Universal perturbations as a scanner: is there a class to which one small change leads all images unusually well?

Moosavi-Dezfooli, Fawzi, Fawzi, Frossard, "Universal adversarial perturbations" (CVPR 2017); Wang, Zhang, Liu, Chen,
Xiong, Wang, "Practical Detection of Trojan Neural Networks: Data-Limited and Data-Free Cases" (ECCV 2020).

Published scanners compare the lengths at which perturbations begin to work, or their agreement with perturbations of
single images, which takes a search of its own for each class. Ours searches all classes as one batched problem at one
length, and compares how sure the model is of the class on images that were not searched on: the mean of log p / (1 - p)
over images of other classes, as a robust index among the classes. Where there are many classes, a short search on few
images chooses those that are worth a long one (see `screening`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from unbackdoor.data import DefenderData, draw_clean, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.scan.base import Finding, Scanner, clean_to_compare
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.scan.screening import for_all, worth_searching
from unbackdoor.scan.universal import log_odds, universal_perturbations
from unbackdoor.training import Runtime, affordable

JUDGES = 128
"""Images, at most, by which the classes are compared."""


@dataclass(frozen=True, kw_only=True)
class UniversalPerturbations(Scanner):
    """Look for one small change of all images towards each class; one that works unusually well is evidence.

    Attributes:
        radius: largest length of a change, pixel units, as a root mean square over the places of the image.
        steps: of the search, 1 or more.
        batch_size: images a class and step.
        most_classes: that are searched; if there are more, those to which a few steps lead best.
        threshold: on the anomaly index (scaled median absolute deviations above the median).
    """

    radius: float = 0.05
    steps: int = 20
    batch_size: int = 32
    most_classes: int = 16
    threshold: float = 3.5

    @property
    def lowest(self) -> int | None:
        """How many of the lowest frequencies along each side a change has; None: it may have all."""
        return None

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not 0 < self.radius < math.inf:
            raise InputError(f"{name}: the radius must be a positive number, found {self.radius}")
        if not math.isfinite(self.threshold):
            raise InputError(f"{name}: the threshold must be a number, found {self.threshold}")
        counts = (self.steps, self.batch_size)
        if min(counts) < 1 or self.most_classes < 3:
            raise InputError(
                f"{name}: steps and batch size must be 1 or more, and most classes 3 or more, found"
                f" {self.steps}, {self.batch_size} and {self.most_classes}"
            )

    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        clean = clean_to_compare(data, "the search for universal perturbations").to(runtime.place)
        searched_on, judges = hold_out(clean, runtime.seed, share=0.5)
        judges = draw_clean(judges, JUDGES, runtime.seed)
        classes, runtime = worth_searching(model, searched_on, self.most_classes, runtime, self.lowest)
        radius = self.radius * math.sqrt(clean.shape[1] * clean.shape[2])

        def search(steps: int) -> Float[Tensor, "m c h w"]:
            return universal_perturbations(
                model, searched_on.images, clean.classes, radius, runtime, steps, self.batch_size, classes, self.lowest
            )

        steps = affordable(self.steps, 1, lambda: search(1), runtime)
        found = log_odds(model, judges, classes, search(steps), runtime).cpu()
        anomaly = for_all(low_outliers(-found), classes, clean.classes)
        suspected = [int(c) for c in anomaly.argsort(descending=True) if anomaly[c] > self.threshold]
        return Finding(
            backdoored=bool(suspected),
            suspected=tuple(suspected),
            calibrated=False,
            anomaly=anomaly,
            threshold=self.threshold,
            reason=_reason("small" if self.lowest is None else "smooth", suspected, anomaly, self.threshold),
            numbers=for_all(found, classes, clean.classes)[None],
            shortened=steps < self.steps,
            evidence={"searched": len(classes)},
        )


def _reason(kind: str, suspected: list[int], anomaly: Float[Tensor, "k"], threshold: float) -> str:
    largest = f"{float(anomaly.max()):.1f}"
    if suspected:
        return (
            f"one {kind} change of all images leads them to class {suspected[0]} unusually well"
            f" (anomaly index {largest}, threshold {threshold:g})"
        )
    return (
        f"no evidence of a {kind} change of all images that works unusually well: the largest anomaly index is"
        f" {largest} (threshold {threshold:g})"
    )
