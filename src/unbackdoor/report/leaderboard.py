"""Boards of many methods on one self-contained, interactive HTML page: no network, nothing beside the file itself.

Three layers keep strangers' text harmless: every string is cleaned (`text.shown`); it comes to the page only as data,
which the page's script puts in as text, never as HTML and never into a chart; and the page's own policy allows the
scripts and the style that we made, told by their digests, and nothing else. Vega draws the charts with its
interpreter, which needs no `eval`. All statistics are done before: the page looks up, sorts and draws.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from markupsafe import Markup

from unbackdoor import __version__
from unbackdoor.files import write_bytes
from unbackdoor.report.content import Fact
from unbackdoor.report.html import digest, environment, template
from unbackdoor.report.packing import packed

Kind = Literal["methods", "trainers", "sifters"]
Axis = Literal["poison rate", "clean samples"]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """One axis by which the page narrows what it shows.

    Attributes:
        name: the axis; a column of the cells has this name or this title.
        title: the same for people: "Poison rate".
        values: its values as text, as they stand in the cells; "none" where cells have no value.
    """

    name: str
    title: str
    values: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method achieved in a selection; shares are fractions in [0, 1], None is what was not measured.

    Attributes:
        method: its name.
        blocks: in how many of the selection's blocks it was measured.
        der: mean defense effectiveness rating.
        rank: mean rank among the methods, 1 is best; None: it lacks blocks that others have and is not ranked.
        acc: mean accuracy on clean data.
        asr: mean attack success rate.
        ra: mean robust accuracy, on triggered data.
        seconds: mean time that it took.
        peak_mb: mean of the largest memory, in MB.
        peak_gpu_mb: the same of the GPU; None: none was used.
        attacks: for each attack the means of "acc", "asr", "ra" and "der"; those that were not measured are left out.
    """

    method: str
    blocks: int
    der: Estimate | None
    rank: Estimate | None
    acc: Estimate | None
    asr: Estimate | None
    ra: Estimate | None
    seconds: float | None
    peak_mb: float | None
    attacks: Mapping[str, Mapping[str, Estimate]]
    peak_gpu_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScannerRow:
    """What one scanner answered in a selection.

    Attributes:
        method: its name.
        backdoored: backdoored models that it scanned.
        flagged: how many of these it called backdoored.
        targeted: backdoored models with one target class.
        target_first: in how many of these the true target was its first suspect.
        clean: clean models that it scanned.
        false_alarms: how many of these it called backdoored.
        inconclusive: models of either kind on which it gave no answer.
        seconds: mean time of a scan.
        peak_mb: mean of the largest memory, in MB.
        peak_gpu_mb: the same of the GPU; None: none was used.
        attacks: for each attack, how many backdoored models it called backdoored, and how many it scanned.
    """

    method: str
    backdoored: int
    flagged: int
    targeted: int
    target_first: int
    clean: int
    false_alarms: int
    inconclusive: int
    seconds: float | None
    peak_mb: float | None = None
    peak_gpu_mb: float | None = None
    attacks: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What a method that trains securely, or a sifter, achieved beside the others of its kind.

    Attributes:
        method: its name.
        blocks: in how many of the selection's blocks it was measured.
        of: blocks in which any method of its kind was.
        complete: whether it has what the others have, so that its figures can be compared.
        rank: mean rank among them, 1 is best; None: it has none.
        figures: means by name, of those in `packing.TRAINED` and `packing.SIFTED`; those not measured are left out.
        attacks: for each attack the same.
        seconds: mean time that it took.
        peak_mb: mean of the largest memory, in MB.
        peak_gpu_mb: the same of the GPU; None: none was used.
    """

    method: str
    blocks: int
    of: int
    complete: bool
    rank: Estimate | None = None
    figures: Mapping[str, Estimate]
    attacks: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    seconds: float | None = None
    peak_mb: float | None = None
    peak_gpu_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """How a method's means change along an axis; drawn if it has two points or more.

    Attributes:
        kind: of the method, as in `Selection`.
        axis: what changes.
        method: the method's name.
        settings: over how many settings, the same at each point and for each method, the means are.
        points: values of the axis, ascending, each with the means of those figures of its kind that were measured.
    """

    kind: Kind
    axis: Axis
    method: str
    settings: int
    points: Sequence[tuple[float, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """All that the page shows for one choice in the filters.

    Attributes:
        blocks: settings in which any of the methods was measured, counted over all methods together.
        methods: the methods that repair.
        scanners: the methods that answer whether a model has a backdoor.
        curves: the methods of each kind along the axes.
        trainers: the methods that train securely.
        sifters: the methods that look for poison in data.
    """

    blocks: int
    methods: Sequence[Row] = ()
    scanners: Sequence[ScannerRow] = ()
    curves: Sequence[Curve] = ()
    trainers: Sequence[Standing] = ()
    sifters: Sequence[Standing] = ()


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """All of a board's page.

    Attributes:
        title: what was compared.
        filters: the axes.
        attacks: all attacks, in the order of their columns.
        selections: for each choice, one value or "" (all) of each filter, what is shown; the page says of a choice
            that is missing that nothing was measured there.
        columns: titles of the cells' columns. Numbers below one that has one of the words in `packing.SHARES` are
            fractions and shown in percent, those below one with the word seconds or MB are shown whole.
        cells: every cell that was done or failed, one value for each column.
        facts: titled groups of named values: "What was run", "Inputs".
        notes: what the figures mean and what the reader must know.
    """

    title: str
    filters: Sequence[Filter]
    attacks: Sequence[str]
    selections: Mapping[tuple[str, ...], Selection]
    columns: Sequence[str]
    cells: Sequence[Sequence[str | float | None]]
    facts: Mapping[str, Sequence[Fact]]
    notes: Sequence[str]


def render_leaderboard(board: Leaderboard) -> str:
    """Return the board as the text of an HTML page.

    Raises:
        InputError: parts that do not fit together: a choice of values that no filter has, an attack without a column,
            a filter without a column, a cell with too many or too few values.
    """
    style = template("report.css") + template("leaderboard.css")
    scripts = [_charts_library(), template("leaderboard_charts.js"), template("leaderboard.js")]
    page = environment().get_template("leaderboard.html.j2")
    return page.render(
        # Markup is what we made ourselves, or escaped: it is put in as it is.
        data=Markup(packed(board)),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        style_digest=digest(style),
        script_digests=[digest(script) for script in scripts],
        version=__version__,
    )


def write_leaderboard(path: Path, board: Leaderboard) -> None:
    """Write the board's page to `path`, complete or not at all.

    Raises:
        InputError: as for `render_leaderboard`.
        OutputError: the file cannot be written.
    """
    write_bytes(path, render_leaderboard(board).encode())


@functools.cache
def _charts_library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, the same on every call."""
    import vl_convert

    library: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Should one of its strings hold the tag that would end the script.
    return re.sub(r"<(?=!--|/?script)", r"\\x3c", library, flags=re.IGNORECASE)
