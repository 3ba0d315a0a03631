"""Calibration tables: what the detectors' numbers are on models that are known to be clean, and what they weigh.

A table belongs to one kind of model: its number of classes, the size of its images, one network with its options. For
each number that a detector gives (of each class, or of the whole model) it has a centre and a scale, so that numbers
can be compared, and a weight; and it has the scores of clean models. With them a model's score becomes a conformal
p-value:

    S_c  = sum over the numbers of weight asinh((x_c - centre) / scale)        for each class c
    S    = max over the classes of S_c
    p    = (1 + number of the clean models with a score of S or more) / (1 + number of the clean models)

If the model is clean and drawn as those were, and looked at with images drawn as those for them, its rank among them
is uniform, so p <= a happens with a probability of at most a, whatever the weights are and however the numbers depend
on each other. (Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.) Only the clean models whose
scores are kept must have had no part in the weights. Ranks among a mixture of networks would keep the rate for the
mixture alone, and not for each of its networks: so a table has one. A detector's numbers can depend on whether the
model was trained on the images: clean ones are taken to be new to the model, in the table as in the scan.

Weights are not negative, so no number that grows can make a model less suspicious. The sum runs within a class before
the maximum is taken: detectors that point at the same class count more than those that contradict each other.
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

from unbackdoor.models import NETWORKS, Description
from unbackdoor.options import bound_options, options_of, revision_of
from unbackdoor.scan.base import Finding, Scanner
from unbackdoor.text import clean_text

ANOMALY = "anomaly"
"""The number of a class that every detector has; all others are of the whole model."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a detector, and what it weighs.

    Attributes:
        detector: its name.
        number: "anomaly", or a name in the finding's `statistics`.
        center: what is usual in clean models.
        scale: how far clean models spread, above 0.
        weight: 0 or more.
    """

    detector: str
    number: str
    center: float
    scale: float
    weight: float


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


@dataclass(frozen=True, kw_only=True)
class Table:
    """What is known of one kind of model.

    Attributes:
        name: what it was calibrated on, for people.
        data: name of the data set that its models were trained on.
        classes: of the models.
        image_shape: channels, height, width.
        architecture: of the models.
        arguments: the architecture's own options, JSON values.
        clean_size: clean images that the detectors were given.
        precision: in which they ran, "bf16" or "fp32".
        rate: share of clean models that may be called backdoored, as `held_out` counts them, 0 to 1.
        detectors: with their options.
        measures: what is weighed.
        clean_scores: of clean models that had no part in the measures, ascending.
        clean_class_scores: of the same models, with the numbers of classes alone, ascending.
        held_out: how it did.
        changed: names of detectors that give other numbers now than those of the table.
    """

    name: str
    data: str
    classes: int
    image_shape: tuple[int, int, int]
    architecture: str
    arguments: Mapping[str, Any]
    clean_size: int
    precision: str
    rate: float
    detectors: tuple[Scanner, ...]
    measures: tuple[Measure, ...]
    clean_scores: tuple[float, ...]
    clean_class_scores: tuple[float, ...]
    held_out: HeldOut = field(repr=False)
    changed: tuple[str, ...] = ()

    def p_value(self, score: float) -> float:
        """Return the conformal p-value of a model's score, above 0 and at most 1."""
        as_large = sum(clean >= score for clean in self.clean_scores)
        return (1 + as_large) / (1 + len(self.clean_scores))

    def threshold(self, rate: float) -> float:
        """Return the score above which the p-value is at most `rate`; infinite if there are too few clean models."""
        return threshold_of(self.clean_scores, rate)

    def suspected(self, findings: Mapping[str, Finding], rate: float) -> tuple[int, ...]:
        """Return the classes that a trigger seems to lead to, most suspicious first; none if the p-value is above rate.

        Numbers of the whole model lift the scores of all its classes alike, and a model that they lift far would have
        innocent ones suspected. So beside the highest class, only those are whose own numbers suffice.

        Args:
            findings: by the detectors' names, one or more.
            rate: share of clean models that may be called backdoored, above 0 and below 1.
        """
        scores = class_scores(self.measures, findings)
        own = class_scores(of_classes(self.measures), findings)
        unusual = threshold_of(self.clean_class_scores, rate)
        order = [int(c) for c in scores.argsort(descending=True) if float(scores[c]) > self.threshold(rate)]
        return tuple(c for place, c in enumerate(order) if place == 0 or float(own[c]) > unusual)

    def misfits(self, description: Description, images: int, precision: str) -> list[str]:
        """Return what of a model, the clean images for it, and a scan is not as in the table; nothing if it fits."""
        classes = len(description.class_names)
        found = []
        if classes != self.classes:
            found.append(f"{classes} classes instead of {self.classes}")
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
        """Return the table as JSON values."""
        return {
            "name": self.name,
            "data": self.data,
            "classes": self.classes,
            "image_shape": list(self.image_shape),
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "clean_size": self.clean_size,
            "precision": self.precision,
            "rate": self.rate,
            "detectors": [{**revision_of(detector), **options_of(detector)} for detector in self.detectors],
            "measures": [vars(measure) for measure in self.measures],
            "clean_scores": list(self.clean_scores),
            "clean_class_scores": list(self.clean_class_scores),
            "held_out": vars(self.held_out),
        }


def _sides(shape: tuple[int, int, int]) -> str:
    return " x ".join(map(str, shape))


def _network(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return a network's name and options, with the defaults of those that are not given."""
    if architecture in NETWORKS:
        return bound_options(partial(NETWORKS[architecture], **arguments))
    return {"name": architecture, **arguments}


def of_classes(measures: Sequence[Measure]) -> tuple[Measure, ...]:
    """Return the measures that are of a class, not of the whole model."""
    return tuple(measure for measure in measures if measure.number == ANOMALY)


def threshold_of(clean_scores: Sequence[float], rate: float) -> float:
    """Return the score above which a p-value is at most `rate`; infinite if there are too few clean models.

    Args:
        clean_scores: ascending.
        rate: above 0 and below 1.
    """
    # A hair more: 0.05 * 20 is less than 1 to some computers.
    allowed = math.floor(rate * (1 + len(clean_scores)) + 1e-9)
    return clean_scores[-min(allowed, len(clean_scores))] if allowed else math.inf


def class_scores(measures: Sequence[Measure], findings: Mapping[str, Finding]) -> Float[Tensor, "k"]:
    """Return the weighted sum of the findings' numbers for each class (see the module's text).

    Args:
        measures: what is weighed.
        findings: by the detectors' names, one or more; a number that is missing or no number counts as usual.
    """
    total = torch.zeros(max(len(finding.anomaly) for finding in findings.values()), dtype=torch.float64)
    for measure in measures:
        finding = findings.get(measure.detector)
        if finding is None:
            continue
        if measure.number == ANOMALY:
            value = finding.anomaly.double().cpu()
        else:
            value = torch.tensor(finding.statistics.get(measure.number, math.nan), dtype=torch.float64)
        usual = torch.asinh((value - measure.center) / measure.scale)
        total = total + measure.weight * torch.where(usual.isfinite(), usual, 0.0)
    return total


def nearest(tables: Sequence[Table], description: Description, images: int, precision: str) -> Table:
    """Return the table for a model: one that fits, with the most clean images, or else one that is least unlike.

    Args:
        tables: one or more.
        description: of the model.
        images: clean images that there are.
        precision: of the scan.
    """

    def distance(table: Table) -> tuple[bool, float, bool, int]:
        pairs = zip((*description.image_shape, len(description.class_names)), (*table.image_shape, table.classes))
        far = sum(abs(math.log(ours / theirs)) for ours, theirs in pairs) + (images < table.clean_size)
        other = description.architecture != table.architecture
        return bool(table.misfits(description, images, precision)), far, other, -table.clean_size

    return min(tables, key=distance)
