"""Drawing with Altair and vl-convert, without a browser and without the network.

Colours are the names that the page's style sheet gives them, so a drawing follows light, dark and print like
the text around it. Text from outside is only ever data, never part of an expression that Vega evaluates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unbackdoor.report.text import shorten, width

if TYPE_CHECKING:
    import altair as alt

INK = "currentColor"
MUTED = "var(--muted)"
FAINT = "var(--line)"
BAR = "var(--bar)"
ACCENT = "var(--accent)"

LETTER = 0.64
"""Width of a letter over the size of the font, in the widest of the common system fonts."""

# Names are keyed by their row, since two classes may have the same name; the key is cut off for display.
_NAME_OF_KEY = r"split(slice(datum.label, indexof(datum.label, '|') + 1), '\n')"

_AXIS_HEIGHT = 54  # padding, and ticks, figures and title of the axis below
WORD_HEIGHT = 18  # a word above the plot


class Canvas(NamedTuple):
    """The room that a chart has: width and letters in pixels, names in letters."""

    width: int
    font: int
    name_cells: int


WIDE = Canvas(width=720, font=13, name_cells=26)
NARROW = Canvas(width=340, font=12, name_cells=16)


def to_svg(chart: alt.LayerChart, canvas: Canvas) -> str:
    """Return the chart as SVG, exactly as wide as the canvas, on a transparent ground."""
    import altair as alt
    import vl_convert as vlc

    sized = (
        chart.properties(
            width=canvas.width,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
            background="transparent",
        )
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=canvas.font,
            titleFontSize=canvas.font,
            titleFontWeight="normal",
            labelColor=MUTED,
            titleColor=MUTED,
            gridColor=FAINT,
            domainColor=FAINT,
            tickColor=FAINT,
            titlePadding=8,
            labelFlush=False,
        )
        .configure_legend(labelFontSize=canvas.font, labelColor=INK)
    )
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg: str = vlc.vegalite_to_svg(sized.to_dict(), vl_version=version, allowed_base_urls=[])
    return svg


def frame(plot: int, above: int = 0) -> dict[str, Any]:
    """Return height and padding of a chart: `plot` pixels, and `above` it for a word or a legend."""
    return {"height": plot + above + _AXIS_HEIGHT, "padding": {"left": 0, "right": 2, "top": 4, "bottom": 4}}


def value_axis(channel: Literal["x", "y"], title: str, log: bool, ticks: int) -> Any:
    """Return the axis of the field `x` or `y`: of values on a linear or on a logarithmic scale."""
    import altair as alt

    kind = alt.X if channel == "x" else alt.Y
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    axis = alt.Axis(title=shorten(title, 40 if channel == "x" else 30), tickCount=ticks, grid=channel == "y")
    # Not for linear ones, whose own format has as many digits as the distance of the ticks needs.
    axis.format = "~g" if log else alt.Undefined
    return kind(f"{channel}:Q", scale=scale, axis=axis)


def row_keys(labels: Sequence[str]) -> list[str]:
    """Return the keys by which rows of these names are told apart."""
    return [f"{number}|{label}" for number, label in enumerate(labels)]


def names_width(labels: Sequence[str], canvas: Canvas) -> int:
    """Return the pixels that the longest line of the names needs in the widest font that a page may meet."""
    cells = max(width(line) for label in labels for line in label.partition("|")[2].split("\n"))
    return round(cells * LETTER * canvas.font) + 6


def names_axis(labels: Sequence[str], canvas: Canvas) -> alt.Axis:
    """Return the axis with the names of rows, by their keys, at the left edge of the drawing."""
    import altair as alt

    return alt.Axis(
        title=None,
        labelExpr=_NAME_OF_KEY,
        labelLimit=0,
        labelOverlap=False,
        ticks=False,
        domain=False,
        labelColor=INK,
        # Names begin at the left edge, in line with the text of the page.
        labelAlign="left",
        labelPadding=names_width(labels, canvas),
    )
