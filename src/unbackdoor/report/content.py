"""What a report can say, as plain values; every command fills what it has and leaves the rest empty.

All text here may come from strangers (class names, file names, metadata). It is cleaned and escaped when the
page is made, so nobody has to do it before.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from jaxtyping import Float
from torch import Tensor

from unbackdoor.errors import InputError

Level = Literal["backdoored", "no evidence", "inconclusive", "repaired", "not repaired", "info"]


class IntervalLike(Protocol):
    """An estimate with its interval, all three fractions in [0, 1]."""

    @property
    def value(self) -> float:
        """The estimate."""

    @property
    def low(self) -> float:
        """Lower end of the interval."""

    @property
    def high(self) -> float:
        """Upper end of the interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval, for figures that are not simple proportions.

    Attributes:
        value: the estimate, a fraction in [0, 1].
        low: lower end of the interval, at most `value`.
        high: upper end of the interval, at least `value`.

    Raises:
        InputError: not fractions in ascending order (percent given by mistake, ends swapped).
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        ends = (0.0, self.low, self.value, self.high, 1.0)
        # Sums of floats may end a hair on the wrong side; what is not a number passes no comparison.
        if not all(left <= right + 1e-9 for left, right in itertools.pairwise(ends)):
            raise InputError(
                f"an interval needs 0 <= low <= value <= high <= 1, found low {self.low}, "
                f"value {self.value}, high {self.high}; give fractions, not percent"
            )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The answer of the run, shown as a banner.

    Attributes:
        level: which of the possible answers this is.
        headline: the answer in one sentence: "no evidence found by Neural Cleanse", never "safe".
        detail: what the answer rests on, one or two sentences.
        calibrated: whether the threshold was measured on models of this kind; if not, the page says so.
    """

    level: Level
    headline: str
    detail: str = ""
    calibrated: bool


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured figure, before and after what the run did.

    Attributes:
        name: for example "Attack success rate (ASR)".
        explanation: what is counted, in one sentence.
        before: the figure of the model as found, or None if it was not measured.
        after: the figure of the model as left, or None if it was not measured.
        better: whether a good model has a high or a low figure.
    """

    name: str
    explanation: str = ""
    before: IntervalLike | None = None
    after: IntervalLike | None = None
    better: Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An image with a caption, which is also its text for those who cannot see it.

    Attributes:
        caption: what is to be seen.
        image: one (grey) or three (RGB) channels of pixels in [0, 1], on any device.
    """

    caption: str
    image: Float[Tensor, "c h w"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Gallery:
    """Pictures that belong together; multiples of three fill whole rows on every screen."""

    title: str
    explanation: str = ""
    pictures: Sequence[Picture]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawing for the page, made by the functions of `unbackdoor.report.charts`.

    Attributes:
        title: what is drawn.
        explanation: how to read it.
        svg: the drawing at the width of a desk's screen.
        narrow_svg: the same at the width of a phone, so that its letters stay readable; empty: `svg` is used.
    """

    title: str
    explanation: str = ""
    svg: str
    narrow_svg: str = ""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """A named value; one named "Command" becomes a block to copy, a hexadecimal digest monospace."""

    name: str
    value: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A part of a page on one question, with a heading of its own.

    Attributes:
        title: of the part.
        headline: the main thing in one sentence.
        paragraphs: more of it.
        drawings: charts and galleries, in the order in which they are shown.
        facts: named values.
    """

    title: str
    headline: str
    paragraphs: Sequence[str] = ()
    drawings: Sequence[Chart | Gallery] = ()
    facts: Sequence[Fact] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """All of a page; only the title is required.

    Attributes:
        title: what was done to what: "Scan of resnet18.safetensors".
        verdict: the answer, for runs that give one.
        metrics: what was measured; becomes a table and a chart.
        galleries: pictures in titled groups.
        charts: drawings.
        sections: parts on one question each; several are listed at the top.
        facts: titled groups of named values: "What was run", "Options", "Inputs".
        next_steps: what the reader can do now.
        notes: limits and surprises that the reader must know.
    """

    title: str
    verdict: Verdict | None = None
    metrics: Sequence[Metric] = ()
    galleries: Sequence[Gallery] = ()
    charts: Sequence[Chart] = ()
    sections: Sequence[Section] = ()
    facts: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    next_steps: Sequence[str] = ()
    notes: Sequence[str] = ()
