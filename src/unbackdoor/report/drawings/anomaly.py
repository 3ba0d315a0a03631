"""Bars of an anomaly index, one a class, with the threshold as a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from unbackdoor.report.drawings.canvas import (
    ACCENT,
    BAR,
    INK,
    LETTER,
    MUTED,
    WORD_HEIGHT,
    Canvas,
    frame,
    names_axis,
    names_width,
    row_keys,
)
from unbackdoor.report.text import shorten

if TYPE_CHECKING:
    import altair as alt


class Bar(NamedTuple):
    """The anomaly index of a class: its name, the finite height that is drawn, the figure in words."""

    name: str
    height: float
    text: str
    flagged: bool


def anomaly_rows(bars: Sequence[Bar], threshold: float, canvas: Canvas) -> alt.LayerChart:
    """Draw bars that lie, like a table: names at the left, bars, figures at the right."""
    import altair as alt

    labels = row_keys([shorten(bar.name, canvas.name_cells) for bar in bars])
    texts = ["flagged " * bar.flagged + bar.text for bar in bars]
    rows = [
        {"label": label, "index": bar.height, "text": text, "flagged": bar.flagged}
        for label, bar, text in zip(labels, bars, texts, strict=True)
    ]
    axis = names_axis(labels, canvas)
    plot = canvas.width - names_width(labels, canvas) - 2
    # The scale is longer than the bars need, by the share of the plot where the figures stand.
    share = min(0.6, (max(map(len, texts)) * LETTER * (canvas.font - 1) + 12) / plot)
    low, high = _ends(bars, threshold)
    domain = [low, low + (high - low) / (1 - share)]
    x = alt.X(
        "index:Q",
        scale=alt.Scale(domain=domain, nice=False),
        axis=alt.Axis(title="Anomaly index", titleAnchor="start", values=_ticks(low, high), format="~g", domain=False),
    )
    layers: list[alt.Chart] = []
    for flagged, colour, ink in ((False, BAR, MUTED), (True, ACCENT, ACCENT)):
        chosen = alt.Chart(alt.InlineData(values=[row for row in rows if row["flagged"] == flagged])).encode(
            y=alt.Y(
                "label:N",
                sort=labels,
                scale=alt.Scale(domain=labels, paddingInner=0.3, paddingOuter=0.3),
                axis=axis,
            )
        )
        figure = chosen.mark_text(
            align="right",
            x="width",
            fontSize=canvas.font - 1,
            color=ink,
            fontWeight="bold" if flagged else "normal",
        )
        layers += [chosen.mark_bar(color=colour).encode(x=x), figure.encode(text="text:N")]
    limit = alt.Chart(alt.InlineData(values=[{"index": threshold, "text": f"threshold {threshold:.2f}"}]))
    # Right of the middle, the word stands left of its line, where there is room.
    side: Literal["right", "left"] = "right" if threshold - low > 0.5 * (domain[1] - low) else "left"
    word = limit.mark_text(align=side, dy=-9, y=0, color=INK, fontSize=canvas.font - 1)
    layers.append(limit.mark_rule(strokeDash=[4, 3], color=INK).encode(x="index:Q"))
    layers.append(word.encode(x="index:Q", text="text:N"))
    return alt.LayerChart(layer=layers, **frame(24 * len(rows), above=WORD_HEIGHT))


def anomaly_columns(bars: Sequence[Bar], threshold: float, canvas: Canvas) -> alt.LayerChart:
    """Draw bars that stand, for many classes: numbered below, flagged ones numbered above."""
    import altair as alt

    rows = [
        {"left": number - 0.4, "right": number + 0.4, "zero": 0, "index": bar.height, "flagged": bar.flagged}
        for number, bar in enumerate(bars)
    ]
    low, top = _ends(bars, threshold)
    x = alt.X(
        "left:Q",
        scale=alt.Scale(domain=[-1, len(bars)], nice=False, zero=False),
        axis=alt.Axis(title="Class number", grid=False, format="d", tickMinStep=1, tickCount=canvas.width // 60),
    )
    y = alt.Y(
        "zero:Q",
        scale=alt.Scale(domain=[low, top + (top - low) * 0.1], nice=False),
        axis=alt.Axis(title="Anomaly index", tickCount=5),
    )
    layers: list[alt.Chart] = []
    for flagged, colour in ((False, BAR), (True, ACCENT)):
        chosen = alt.Chart(alt.InlineData(values=[row for row in rows if row["flagged"] == flagged]))
        layers.append(chosen.mark_rect(color=colour).encode(x=x, x2="right:Q", y=y, y2="index:Q"))
    limit = alt.Chart(alt.InlineData(values=[{"index": threshold, "text": f"dashed: threshold {threshold:.2f}"}]))
    layers.append(limit.mark_rule(strokeDash=[4, 3], color=INK).encode(y="index:Q"))
    layers.append(
        # Above the plot, where no bar can stand behind it.
        limit.mark_text(align="right", x="width", y=-10, color=INK, fontSize=canvas.font - 1).encode(text="text:N")
    )
    numbers = [
        {"left": number, "index": max(bars[number].height, 0), "text": str(number)}
        for number in _numbered(bars, canvas)
    ]
    layers.append(
        alt.Chart(alt.InlineData(values=numbers))
        .mark_text(dy=-8, color=ACCENT, fontWeight="bold", fontSize=canvas.font)
        .encode(x="left:Q", y="index:Q", text="text:N")
    )
    return alt.LayerChart(layer=layers, **frame(220, above=WORD_HEIGHT))


def _ends(bars: Sequence[Bar], threshold: float) -> tuple[float, float]:
    """Return the ends of a scale that holds all bars, zero and the threshold, with a little air."""
    heights = [0.0, threshold, *(bar.height for bar in bars)]
    low, high = min(heights), max(heights)
    air = (high - low or 1.0) * 0.05
    return low - air * (low < 0), high + air


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round figures between the ends of a scale."""
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [round(step * n, 10) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _numbered(bars: Sequence[Bar], canvas: Canvas) -> list[int]:
    """Choose the flagged bars that get their number: the highest first, none too near to one chosen."""
    distance = (len(str(len(bars))) + 1) * LETTER * canvas.font * len(bars) / canvas.width
    chosen: list[int] = []
    for number in sorted(range(len(bars)), key=lambda number: -bars[number].height):
        if bars[number].flagged and all(abs(number - other) > distance for other in chosen):
            chosen.append(number)
    return chosen
