"""Lines and points over an axis: one curve, or several series."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from unbackdoor.report.drawings.canvas import ACCENT, MUTED, WIDE, Canvas, frame, value_axis
from unbackdoor.report.text import shorten

if TYPE_CHECKING:
    import altair as alt

FIRST_TO_LAST = ((63, 127, 191), (138, 111, 168), (208, 102, 42))
"""Colours of the first, the middle and the last of many series, as red, green and blue; seen on light and on dark."""


def curve(points: Sequence[tuple[float, float]], x_title: str, y_title: str, canvas: Canvas) -> alt.LayerChart:
    """Draw a line through the points, with a dot on each if they are few."""
    import altair as alt

    rows = [{"x": float(x), "y": float(y) if math.isfinite(y) else None} for x, y in points]
    whole = all(float(x).is_integer() for x, _ in points)
    ticks = alt.Axis(
        title=shorten(x_title, 40), grid=False, tickCount=canvas.width // 80, tickMinStep=1 if whole else 0
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("x:Q", scale=alt.Scale(zero=False, nice=False), axis=ticks),
        y=alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=shorten(y_title, 30), tickCount=5)),
    )
    line = base.mark_line(color=ACCENT, strokeWidth=2)
    # Between two gaps a point has no line: then its dot is all there is of it.
    size = 24 if len(points) <= 60 else 4
    dots = base.transform_filter("datum.y !== null").mark_circle(color=ACCENT, opacity=1, size=size)
    return alt.LayerChart(layer=[line, dots], **frame(220))


def series(
    points: Mapping[str, Sequence[tuple[float, float]]],
    marks: Literal["points", "lines"],
    titles: tuple[str, str],
    logs: tuple[bool, bool],
    canvas: Canvas,
) -> alt.LayerChart:
    """Draw named series of (x, y): two in the accent and the muted colour, more in colours from first to last.

    The legend names a few of many.
    """
    import altair as alt

    names = [f"{number} {shorten(name, canvas.name_cells)}" for number, name in enumerate(points, 1)]
    if len(names) <= 2:
        names = [shorten(name, canvas.name_cells) for name in points]
    rows = [
        {"series": name, "number": number, "x": x, "y": y}
        for name, (number, one) in zip(names, enumerate(points.values()), strict=True)
        for x, y in one
    ]
    colours = [ACCENT, MUTED] if len(names) <= 2 else [_between(n / (len(names) - 1)) for n in range(len(names))]
    named = sorted({round(part * (len(names) - 1) / 4) for part in range(5)})
    columns = min(len(named), 3 if canvas is WIDE else 2)
    legend = None
    if len(names) > 1:
        legend = alt.Legend(
            title=None,
            orient="top",
            values=[names[n] for n in named],
            columns=columns,
            # The page's letters may be wider than those that the drawing was measured with.
            columnPadding=3 * canvas.font,
            labelLimit=0,
            symbolOpacity=1,
        )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=value_axis("x", titles[0], logs[0], canvas.width // 80),
        y=value_axis("y", titles[1], logs[1], 5),
        color=alt.Color(
            "series:N", sort=names, legend=legend, scale=alt.Scale(domain=names, range=colours[: len(names)])
        ),
        detail="number:N",
    )
    drawn = (
        base.mark_circle(size=16, opacity=0.7)
        if marks == "points"
        else base.mark_line(strokeWidth=2 if len(names) <= 2 else 1.4)
    )
    rows_of_legend = -(-len(named) // columns) if legend else 0
    return alt.LayerChart(layer=[drawn], **frame(300 if marks == "points" else 240, above=22 * rows_of_legend))


def _between(part: float) -> str:
    """Return the colour at this part of the way from the first to the last, 0 to 1."""
    first, middle, last = FIRST_TO_LAST
    one, other, way = (first, middle, 2 * part) if part < 0.5 else (middle, last, 2 * part - 1)
    return "#" + "".join(f"{round(a + (b - a) * way):02x}" for a, b in zip(one, other, strict=True))
