"""Rows by their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from unbackdoor.report.drawings.canvas import ACCENT, BAR, Canvas, frame
from unbackdoor.report.text import shorten

if TYPE_CHECKING:
    import altair as alt


class Bin(NamedTuple):
    """A range of scores, and how many rows lie in it: those that are not flagged, and those that are."""

    left: float
    right: float
    plain: int
    flagged: int


def histogram(bins: Sequence[Bin], x_title: str, canvas: Canvas) -> alt.LayerChart:
    """Draw the bins on a logarithmic scale of counts, flagged rows above the others."""
    import altair as alt

    top = max(bar.plain + bar.flagged for bar in bins)
    y = alt.Y(
        "from:Q",
        # Logarithmic, but for 0, which has a place on it.
        scale=alt.Scale(type="symlog", domain=[0, 1.3 * top], nice=False),
        axis=alt.Axis(title="Rows", values=[0, *(10**power for power in range(len(str(top))))], format=",d"),
    )
    x = alt.X(
        "left:Q",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(title=shorten(x_title, 40), grid=False, tickCount=canvas.width // 80),
    )
    layers: list[alt.Chart] = []
    for colour, spans in (
        (BAR, [(bar, 0, bar.plain) for bar in bins]),
        (ACCENT, [(bar, bar.plain, bar.plain + bar.flagged) for bar in bins]),
    ):
        rows = [
            {"left": bar.left, "right": bar.right, "from": low, "to": high} for bar, low, high in spans if high > low
        ]
        chosen = alt.Chart(alt.InlineData(values=rows))
        layers.append(chosen.mark_rect(color=colour).encode(x=x, x2="right:Q", y=y, y2="to:Q"))
    return alt.LayerChart(layer=layers, **frame(220))
