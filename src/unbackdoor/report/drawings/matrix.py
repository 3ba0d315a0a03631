"""A map of cells: shares of classes by classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unbackdoor.report.drawings.canvas import ACCENT, INK, Canvas, frame, names_axis, row_keys
from unbackdoor.report.text import shorten

if TYPE_CHECKING:
    import altair as alt

MOST_NAMED = 30
"""With more classes than this, rows are numbered like columns."""
MOST_WRITTEN = 12
"""With more classes than this, there is no room for figures in the cells."""
LEAST_SHARE = 0.005
"""Below this a cell stays empty: it would be written as 0 %."""
DARKEST = 0.5
"""Opacity of a cell that has all of its row; figures can still be read on it, in light and in dark."""


def matrix(
    names: Sequence[str], shares: Sequence[Sequence[float]], titles: tuple[str, str], canvas: Canvas
) -> alt.LayerChart:
    """Draw a cell for each share, the darker the larger, with its percentage where there is room; none for nothing."""
    import altair as alt

    labels = row_keys([shorten(name, canvas.name_cells) for name in names])
    many = len(names) > MOST_NAMED
    rows = [
        {
            "label": label,
            "column": column,
            "top": number - 0.5,
            "bottom": number + 0.5,
            "left": column - 0.5,
            "right": column + 0.5,
            "share": share,
            "text": f"{100 * share:.0f}",
        }
        for number, (label, row) in enumerate(zip(labels, shares, strict=True))
        for column, share in enumerate(row)
        if share >= LEAST_SHARE
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    fill = alt.FillOpacity("share:Q", legend=None, scale=alt.Scale(domain=[0, 1], range=[0.04, DARKEST]))
    x_title, y_title = titles
    if many:
        x, y = (_numbered(channel, len(names), title) for channel, title in ((alt.X, x_title), (alt.Y, y_title)))
        cells = base.mark_rect(color=ACCENT).encode(x=x, x2="right:Q", y=y, y2="bottom:Q", fillOpacity=fill)
        return alt.LayerChart(layer=[cells], **frame(360))
    place: dict[str, Any] = {
        "x": alt.X(
            "column:O",
            scale=alt.Scale(domain=[*range(len(names))], padding=0.06),
            axis=alt.Axis(title=shorten(x_title, 40), labelAngle=0, ticks=False, domain=False, titleAnchor="start"),
        ),
        "y": alt.Y(
            "label:N", sort=labels, scale=alt.Scale(domain=labels, padding=0.06), axis=names_axis(labels, canvas)
        ),
    }
    layers = [base.mark_rect(color=ACCENT).encode(**place, fillOpacity=fill)]
    if len(names) <= MOST_WRITTEN:
        layers.append(base.mark_text(color=INK, fontSize=canvas.font - 2).encode(**place, text="text:N"))
    return alt.LayerChart(layer=layers, **frame(26 * len(names)))


def _numbered(channel: Any, count: int, title: str) -> Any:
    """Return an axis of numbered classes, from left to right or from top to bottom."""
    import altair as alt

    across = channel is alt.X
    return channel(
        "left:Q" if across else "top:Q",
        scale=alt.Scale(domain=[-0.5, count - 0.5], nice=False, zero=False, reverse=not across),
        axis=alt.Axis(title=shorten(title, 40), grid=False, format="d", tickMinStep=1),
    )
