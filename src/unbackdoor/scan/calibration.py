"""Calibration tables: what the detectors' numbers are on models that are known to be clean.

A table belongs to one kind of model: its classes, the size of its images, one network with its options. For each
detector it has the numbers of each class of n clean models. A model that is looked at becomes the last of n + 1, and
all are treated alike. With x the j-th number of a detector for class c of model i:

    y = x - median over the classes of x          so that no model is suspicious for all of its classes
    d = y - median over the models of y           what is usual of that class, such as one that stripes look like
    z = asinh(d / s),  s = 1.4826 max(median over the models of |d|, median of all |d| of the detector that are not 0)
    S_ic = sum over the detectors of max(0, largest z of any j)^2
    S_i  = max over the classes of S_ic
    p    = (1 + number of the clean models with a score of S_n+1 or more) / (n + 1)

If the model is clean and drawn as those were, and looked at with images drawn as those for them, the n + 1 models are
exchangeable and nothing in the formulas tells them apart. So the rank of the last is uniform, and p <= a happens with a
probability of at most a, whatever the detectors see and however their numbers depend on each other: it is a full
conformal p-value (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005). Ranks among a mixture of
networks would keep the rate for the mixture alone, and not for each of its networks: so a table has one. A detector's
numbers can depend on whether the model was trained on the images: clean ones are taken to be new to the model, in the
table as in the scan.

The sum runs within a class before the maximum is taken: detectors that point at the same class count more than those
that contradict each other. It is of squares, of what exceeds the usual alone, as in a one-sided chi-squared statistic:
a detector that is sure is not drowned by those that see nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unbackdoor.conformal import allowed_above
from unbackdoor.models import NETWORKS, Description
from unbackdoor.options import bound_options, options_of, revision_of
from unbackdoor.scan.base import Finding, Scanner
from unbackdoor.scan.outliers import GAUSSIAN
from unbackdoor.text import clean_text

LEAST_SCALE = 1e-6
"""Of a number that clean models agree on."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How the verdict did on models that had no part in the table.

    Attributes:
        clean: clean models.
        alarms: of them called backdoored.
        backdoored: backdoored models.
        found: of them called backdoored.
        single_target: of those found, the ones with one target class.
        right_target: of those, the ones whose first suspected class is the target.
    """

    clean: int
    alarms: int
    backdoored: int
    found: int
    single_target: int
    right_target: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """How unusual a model is among clean ones; see the module's text.

    Attributes:
        scores: of the model's classes, 0 or more.
        clean_scores: of the clean models, ascending.
    """

    scores: Float[Tensor, "k"]
    clean_scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The model's score: that of its highest class."""
        return float(self.scores.max())

    @property
    def p_value(self) -> float:
        """The share of models that are as unusual as this one, it among them; above 0 and at most 1."""
        as_large = sum(clean >= self.score for clean in self.clean_scores)
        return (1 + as_large) / (1 + len(self.clean_scores))

    def threshold(self, rate: float) -> float:
        """Return the score above which the p-value is at most `rate`; infinite if there are too few clean models.

        Args:
            rate: above 0 and below 1.
        """
        allowed = allowed_above(rate, len(self.clean_scores))
        return self.clean_scores[-min(allowed, len(self.clean_scores))] if allowed else math.inf

    def suspected(self, rate: float) -> tuple[int, ...]:
        """Return the classes that a trigger seems to lead to, most suspicious first; none if the p-value is above rate.

        Args:
            rate: share of clean models that may be called backdoored, above 0 and below 1.
        """
        order = self.scores.argsort(descending=True, stable=True)
        return tuple(int(c) for c in order if float(self.scores[c]) > self.threshold(rate))


def compared(clean: Mapping[str, Float[Tensor, "n _ k"]], findings: Mapping[str, Finding]) -> Comparison:
    """Compare a model with clean ones, by the detectors that have a word on it.

    Args:
        clean: numbers of the clean models, by the detectors' names.
        findings: by the same names, one or more of them; numbers of the same shape.
    """
    squares = [
        _unusual(torch.cat([known.double(), findings[name].numbers.double().cpu()[None]])).square()
        for name, known in clean.items()
        if name in findings
    ]
    scores = torch.stack(squares).sum(0)
    return Comparison(scores=scores[-1], clean_scores=tuple(sorted(scores[:-1].amax(1).tolist())))


def _unusual(numbers: Float[Tensor, "n m k"]) -> Float[Tensor, "n k"]:
    """Return by how much a detector's numbers of each class exceed what is usual, 0 or more."""
    # No number counts as the class in the middle.
    numbers = numbers.where(numbers.isfinite(), torch.nan)
    leads = (numbers - numbers.nanquantile(0.5, dim=2, keepdim=True)).nan_to_num(0.0)
    far = leads - leads.quantile(0.5, dim=0)
    own, all_of_them = far.abs().quantile(0.5, dim=0), far[far != 0].abs()
    # Without the zeros: of many classes, those that were not searched all have the number of the class in the middle.
    least = max(LEAST_SCALE, float(all_of_them.quantile(0.5))) if len(all_of_them) else LEAST_SCALE
    scales = GAUSSIAN * own.clamp_min(least)
    return torch.asinh(far / scales).amax(1).clamp_min(0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """What is known of one kind of model.

    Attributes:
        name: what it was calibrated on, for people.
        data: name of the data set that its models were trained on.
        class_names: of the models, in their order.
        image_shape: channels, height, width.
        architecture: of the models.
        arguments: the architecture's own options, JSON values.
        clean_size: clean images that the detectors were given.
        precision: in which they ran, "bf16" or "fp32".
        rate: share of clean models that may be called backdoored, as `held_out` counts them, 0 to 1.
        detectors: with their options.
        clean: numbers of the clean models, shape (models, numbers, classes), by the detectors' names.
        held_out: how it did.
        changed: names of detectors that give other numbers now than those of the table.
    """

    name: str
    data: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    architecture: str
    arguments: Mapping[str, Any]
    clean_size: int
    precision: str
    rate: float
    detectors: tuple[Scanner, ...]
    clean: Mapping[str, Float[Tensor, "n _ k"]]
    held_out: HeldOut = field(repr=False)
    changed: tuple[str, ...] = ()

    @property
    def clean_models(self) -> int:
        """How many clean models there are to compare with."""
        return len(next(iter(self.clean.values())))

    def comparable(self, description: Description) -> bool:
        """Return whether a model has the classes and the images of the table, so that numbers can be compared."""
        return description.class_names == self.class_names and description.image_shape == self.image_shape

    def misfits(self, description: Description, images: int, precision: str) -> list[str]:
        """Return what of a model, the clean images for it, and a scan is not as in the table; nothing if it fits."""
        found = []
        if len(description.class_names) != len(self.class_names):
            found.append(f"{len(description.class_names)} classes instead of {len(self.class_names)}")
        elif description.class_names != self.class_names:
            found.append("classes of other names, or in another order")
        if description.image_shape != self.image_shape:
            found.append(f"images of {_sides(description.image_shape)} instead of {_sides(self.image_shape)}")
        if _network(description.architecture, description.arguments) != _network(self.architecture, self.arguments):
            told = " ".join([description.architecture, *(f"{k}={v}" for k, v in description.arguments.items())])
            found.append(f"the network {clean_text(told, 60)}")
        if description.edits:
            found.append("layers that were put in after training")
        if self.changed:
            found.append(f"numbers of {' and '.join(self.changed)} that are others since the table was made")
        if precision != self.precision:
            found.append(f"a precision of {precision} instead of {self.precision}")
        if images < self.clean_size:
            found.append(f"{images} clean images instead of {self.clean_size}")
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values; numbers have four digits."""
        return {
            "name": self.name,
            "data": self.data,
            "class_names": list(self.class_names),
            "image_shape": list(self.image_shape),
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "clean_size": self.clean_size,
            "precision": self.precision,
            "rate": self.rate,
            "detectors": [{**revision_of(detector), **options_of(detector)} for detector in self.detectors],
            "clean": {name: short(numbers) for name, numbers in self.clean.items()},
            "held_out": vars(self.held_out),
        }


def short(numbers: Tensor) -> Any:
    """Return numbers as nested lists, each with four digits: more tell nothing, and fill files."""
    if numbers.dim():
        return [short(one) for one in numbers]
    return float(f"{float(numbers):.4g}")


def _sides(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _network(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's name and options, with the defaults of those that are not given."""
    if architecture in NETWORKS:
        return bound_options(partial(NETWORKS[architecture], **arguments))
    return {"name": architecture, **arguments}


def nearest(tables: Sequence[Table], description: Description, images: int, precision: str) -> Table:
    """Return the table for a model: one that fits, with the most clean images, or else one that is least unlike.

    Args:
        tables: one or more.
        description: of the model.
        images: clean images that there are.
        precision: of the scan.
    """

    def distance(table: Table) -> tuple[bool, bool, float, bool, int]:
        ours = (*description.image_shape, len(description.class_names))
        theirs = (*table.image_shape, len(table.class_names))
        far = sum(abs(math.log(one / other)) for one, other in zip(ours, theirs)) + (images < table.clean_size)
        unlike = description.architecture != table.architecture
        misfits = bool(table.misfits(description, images, precision))
        return misfits, not table.comparable(description), far, unlike, -table.clean_size

    return min(tables, key=distance)
