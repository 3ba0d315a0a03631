"""`Inspection`: look into a model, and say what was seen; no verdict, and nothing that a defence may rest on."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.models import Network
from unbackdoor.training import Runtime, check_fits

Values = Sequence[float]


class KnownAttack(Protocol):
    """What is known of an attack, fitted or read from a file."""

    @property
    def trigger(self) -> Trigger:
        """What wakes the backdoor."""

    @property
    def criterion(self) -> Criterion:
        """What counts as success."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """What an inspection may look at beside the model. Other than a defence's data, the attack may be among it.

    Attributes:
        clean: correctly labelled images of the model's classes.
        attack: on the model, or None if it is not known.
        reference: a model of the same task to compare with, such as one without a backdoor or the suspect after a
            repair, or None.
    """

    clean: ImageSet
    attack: KnownAttack | None = None
    reference: Network | None = None


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Something to draw: points, lines or the outline of a histogram, in named series that keep their order.

    Attributes:
        title: what is drawn.
        explanation: how to read it.
        marks: how; "steps" are histograms: y from each x to the next, shares from 0 to 1.
        series: x and y values, as many of each, by name. Names may come from outside.
        x_title: of the axis.
        y_title: of the axis.
        log_x: whether the axis is logarithmic; values of 0 or less cannot be shown then.
        log_y: the same of the other.
        distinct: whether the series are unlike each other, as classes are; otherwise colours run from the first to the
            last, as layers do.
        stands_out: the name of the series that is drawn on top and stands out, if `distinct`; or empty.
    """

    title: str
    explanation: str
    marks: Literal["points", "lines", "steps"]
    series: Mapping[str, tuple[Values, Values]]
    x_title: str
    y_title: str
    log_x: bool = False
    log_y: bool = False
    distinct: bool = False
    stands_out: str = ""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """Shares to draw as a map of cells.

    Attributes:
        title: what is drawn.
        explanation: how to read it.
        names: of the classes, which are rows and columns. They may come from outside.
        shares: 0 to 1, by row and column.
        x_title: of the columns.
        y_title: of the rows.
    """

    title: str
    explanation: str
    names: Sequence[str]
    shares: Sequence[Values]
    x_title: str
    y_title: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Pictures:
    """Images to show.

    Attributes:
        title: what is shown.
        explanation: how to read it.
        pictures: captions and pixels in [0, 1], in one or three channels.
    """

    title: str
    explanation: str
    pictures: Sequence[tuple[str, Float[Tensor, "c h w"]]]


@dataclass(frozen=True, kw_only=True)
class Insight:
    """What an inspection saw.

    Attributes:
        headline: the main thing in one sentence.
        detail: more of it, or empty.
        suspicious: what a backdoor would look like here, or empty.
        rows: the figures that matter most, by name, as people read them.
        tables: more figures in titled groups.
        figures: to be drawn.
        measured: the figures for programs, JSON values.
        details: long lists for programs that are kept in the record only.
        notes: limits that a reader must know.
    """

    headline: str
    detail: str = ""
    suspicious: str = ""
    rows: Sequence[tuple[str, str]]
    tables: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)
    figures: Sequence[Figure | Matrix | Pictures] = ()
    measured: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Inspection(ABC):
    """Base of all inspections: its fields are its options, nothing else is stored.

    Attributes:
        title: heading of what was seen; by default the name of the class.
        slow: whether it takes minutes, so that it is made only when it is named.
    """

    title: ClassVar[str] = ""
    slow: ClassVar[bool] = False

    def inspect(self, model: Network, material: Material, runtime: Runtime, resume: Path | None = None) -> Insight:
        """Return what was seen.

        Args:
            model: the suspect; not changed.
            material: what else may be looked at; not changed.
            runtime: device, seed, budget.
            resume: file through which an interrupted inspection goes on; see `training.fit`.

        Raises:
            InputError: the material does not fit the model.
            UnsuitedError: the network, or the installation, lacks what is looked at.
        """
        check_fits(model, material.clean)
        if material.reference is not None:
            check_fits(material.reference, material.clean)
            material = replace(material, reference=_trainable_copy(material.reference))
        return self.look(_trainable_copy(model), material, runtime, resume)

    @abstractmethod
    def look(self, model: Network, material: Material, runtime: Runtime, resume: Path | None) -> Insight:
        """Inspect `model`; called by `inspect` with copies of its own of the model and the reference."""


def _trainable_copy(model: Network) -> Network:
    return copy.deepcopy(model).requires_grad_(True).eval()
