"""Figures before and after, as marks with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unbackdoor.report.content import IntervalLike, Metric
from unbackdoor.report.drawings.canvas import ACCENT, MUTED, WIDE, Canvas, frame, names_axis, row_keys
from unbackdoor.report.text import shorten, width

if TYPE_CHECKING:
    import altair as alt


def figures(metric: Metric) -> list[tuple[str, IntervalLike]]:
    """Return the figures of a metric that were measured, with "before" or "after"."""
    pairs = (("before", metric.before), ("after", metric.after))
    return [(when, figure) for when, figure in pairs if figure is not None and math.isfinite(figure.value)]


def metric_dots(metrics: Sequence[Metric], canvas: Canvas) -> alt.LayerChart:
    """Draw the figures of each metric as marks on one scale, with their intervals."""
    import altair as alt

    labels = row_keys([_in_lines(metric.name, canvas.name_cells) for metric in metrics])
    rows = [
        {
            "label": label,
            "when": when,
            "value": 100 * figure.value,
            "low": 100 * figure.low,
            "high": 100 * figure.high,
        }
        for label, metric in zip(labels, metrics, strict=True)
        for when, figure in figures(metric)
    ]
    moments = [when for when in ("before", "after") if any(row["when"] == when for row in rows)]
    # A single figure is not a comparison and needs no legend.
    legend = alt.Legend(title=None, orient="top", symbolSize=90) if len(moments) == 2 else None
    colours = alt.Scale(domain=["before", "after"], range=[MUTED, ACCENT])
    shapes = alt.Scale(domain=["before", "after"], range=["circle", "diamond"])
    axis = alt.Axis(
        title="Percent",
        titleAnchor="start",
        domain=False,
        values=list(range(0, 101, 20 if canvas is WIDE else 50)),
    )
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        y=alt.Y("label:N", sort=labels, axis=names_axis(labels, canvas)),
        yOffset=alt.YOffset("when:N", sort=moments, scale=alt.Scale(paddingOuter=0.7)),
        color=alt.Color("when:N", legend=legend, scale=colours),
    )
    spans = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[-2, 102], nice=False), axis=axis), x2="high:Q"
    )
    marks = base.mark_point(filled=True, opacity=1, size=90).encode(
        x="value:Q", shape=alt.Shape("when:N", legend=legend, scale=shapes)
    )
    lines = max(label.count("\n") + 1 for label in labels)
    row_height = max(22 * len(moments) + 4, round(1.25 * canvas.font * lines) + 12)
    return alt.LayerChart(layer=[spans, marks], **frame(row_height * len(metrics), above=26 if legend else 0))


def _in_lines(name: str, cells: int) -> str:
    """Break a name between words into at most three lines of `cells` letters, cutting what is longer."""
    lines = [""]
    for word in shorten(name, 3 * cells).split():
        if lines[-1] and width(f"{lines[-1]} {word}") > cells and len(lines) < 3:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(shorten(line, cells) for line in lines)
