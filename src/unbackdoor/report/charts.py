"""Charts as SVG drawings, each in a wide and a narrow version, in the colours of the page.

Altair describes them and vl-convert draws them, without a browser and without the network. Colours are the names
that the page's style sheet gives them, so a chart follows light, dark and print like the text around it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unbackdoor.errors import InputError
from unbackdoor.report.content import Chart, Metric
from unbackdoor.report.svg import harmless_svg
from unbackdoor.report.text import change, percent, plain, shorten, width

if TYPE_CHECKING:
    import altair as alt

INK = "currentColor"
MUTED = "var(--muted)"
FAINT = "var(--line)"
BAR = "var(--bar)"
ACCENT = "var(--accent)"

MOST_NAMED_CLASSES = 30
"""With more classes than this, names would need more than a screen: bars stand side by side, numbered."""

MOST_POINTS = 500
"""Points of a curve that are drawn; more cannot be told apart at this size."""


class _Canvas(NamedTuple):
    """The room that a chart has: width and letters in pixels, names in letters."""

    width: int
    font: int
    name_cells: int


_WIDE = _Canvas(width=720, font=13, name_cells=30)
_NARROW = _Canvas(width=340, font=12, name_cells=15)

# Axis names are keyed by their row, since two classes may have the same name; the key is cut off for display. This
# is a constant: no text from outside is ever part of an expression that Vega evaluates.
_NAME_OF_KEY = r"split(slice(datum.label, indexof(datum.label, '|') + 1), '\n')"


def anomaly_chart(
    class_names: Sequence[str], indices: Sequence[float], threshold: float, flagged: Sequence[int]
) -> Chart:
    """Draw the anomaly index of each class as a bar, the threshold as a line, flagged classes in the accent colour.

    Args:
        class_names: one name per class.
        indices: anomaly index per class; what is not finite is drawn as no bar and said in words.
        threshold: the index from which on a class is suspect.
        flagged: numbers of the classes that the scanner suspects.

    Raises:
        InputError: names and indices differ in number, or a flagged number is not a class.
    """
    if len(class_names) != len(indices) or not class_names:
        raise InputError(f"an anomaly chart needs one index per class, found {len(indices)} for {len(class_names)}")
    if not set(flagged) <= set(range(len(indices))):
        raise InputError(f"flagged classes {sorted(flagged)} must be numbers from 0 to {len(indices) - 1}")
    heights = [index if math.isfinite(index) else 0.0 for index in indices]
    low, high = min(0.0, *heights), max(0.0, threshold, *heights)
    room = (high - low or 1) * 0.05
    data = _Anomalies(
        names=[_class_label(number, name) for number, name in enumerate(class_names)],
        indices=list(indices),
        heights=heights,
        threshold=threshold,
        flagged=set(flagged),
        low=low - (room if low < 0 else 0),
        high=high + room,
    )
    suspects = [f"{shorten(data.names[number], 60)} ({_index_text(indices[number])})" for number in sorted(flagged)]
    answer = f"Flagged: {', '.join(suspects)}." if suspects else "No class is flagged."
    label = f"Bar chart of the anomaly index of {len(indices)} classes, threshold {threshold:.2f}. {answer}"
    draw = _anomaly_rows if len(indices) <= MOST_NAMED_CLASSES else _anomaly_columns
    return _chart(
        title="Anomaly index of each class",
        explanation=f"A class whose index passes the threshold ({threshold:.2f}) stands out from the others. {answer}",
        label=label,
        draw=lambda canvas: draw(data, canvas),
    )


def metric_chart(metrics: Sequence[Metric]) -> Chart:
    """Draw each metric before (circle) and after (diamond) on a scale from 0 to 100 %, with its interval as a line.

    Raises:
        InputError: no metric has a figure.
    """
    measured = [
        metric for metric in metrics if any(percent(figure)[1] for figure in (metric.before, metric.after))
    ]
    if not measured:
        raise InputError("a metric chart needs at least one metric with a figure; leave the chart out")
    sentences = []
    for metric in measured:
        words = [f"{when} {' '.join(percent(figure))}" for when, figure in _figures(metric)]
        sentences.append(f"{plain(metric.name)}: {', '.join(words)}{', ' + change(metric)[1] if change(metric)[1] else ''}.")
    return _chart(
        title="The figures with their intervals",
        explanation="A mark is the figure, the line through it its interval.",
        label="Dot chart in percent. " + " ".join(sentences),
        draw=lambda canvas: _metric_dots(measured, canvas),
    )


def curve_chart(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> Chart:
    """Draw `y` over `x` as a line: a loss or an accuracy over epochs. Points that are not finite leave a gap.

    Raises:
        InputError: `x` and `y` differ in length, or no point is finite.
    """
    finite = [value for value in y if math.isfinite(value)]
    if len(x) != len(y) or not finite:
        raise InputError(f"curve {y_title!r}: needs as many y as x and a finite one, found {len(y)} and {len(x)}")
    label = (
        f"Line chart of {plain(y_title)} over {plain(x_title)}, {len(y)} points: from {finite[0]:.4g} to "
        f"{finite[-1]:.4g}, lowest {min(finite):.4g}, highest {max(finite):.4g}."
    )
    # Every n-th point from the end, so that the last one, which people look for, is always there.
    step = -(-len(x) // MOST_POINTS)
    points = [
        {"x": float(a), "y": float(b) if math.isfinite(b) else None}
        for a, b in list(zip(x, y, strict=True))[::-step][::-1]
    ]
    return _chart(
        title=f"{y_title} over {x_title}",
        explanation="",
        label=label,
        draw=lambda canvas: _curve(points, x_title, y_title, canvas),
    )


class _Anomalies(NamedTuple):
    """What both anomaly charts draw: names and indices per class, and the ends of the scale."""

    names: list[str]
    indices: list[float]
    heights: list[float]
    threshold: float
    flagged: set[int]
    low: float
    high: float


def _class_label(number: int, name: str) -> str:
    name = plain(name).strip()
    return name if name == str(number) else f"{number} · {name}"


def _index_text(index: float) -> str:
    return f"{index:.2f}" if math.isfinite(index) else "not finite"


def _anomaly_rows(data: _Anomalies, canvas: _Canvas) -> alt.LayerChart:
    """Bars that lie, named at their left, with their figure at their right end."""
    import altair as alt

    labels = _row_keys([shorten(name, canvas.name_cells) for name in data.names])
    rows = [
        {
            "label": label,
            "index": height,
            "end": max(height, 0),
            "colour": ACCENT if number in data.flagged else BAR,
            "ink": ACCENT if number in data.flagged else MUTED,
            "weight": "bold" if number in data.flagged else "normal",
            "text": _index_text(index) + (" flagged" if number in data.flagged else ""),
        }
        for number, (label, index, height) in enumerate(zip(labels, data.indices, data.heights, strict=True))
    ]
    # The figures stand right of the bars and need their share of the scale.
    figure = max(len(str(row["text"])) for row in rows) * 0.62 * canvas.font / (0.62 * canvas.width)
    high = data.low + (data.high - data.low) * (1 + figure)
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("label:N", sort=None, scale=alt.Scale(paddingInner=0.3), axis=_names_axis(labels, canvas))
    )
    scale = alt.Scale(domain=[data.low, high], nice=False)
    bars = base.mark_bar().encode(
        x=alt.X("index:Q", scale=scale, axis=alt.Axis(title="Anomaly index", tickCount=5)),
        color=alt.Color("colour:N", scale=None),
    )
    figures = base.mark_text(align="left", dx=5, fontSize=canvas.font - 1).encode(
        x="end:Q", text="text:N", color=alt.Color("ink:N", scale=None)
    )
    bold, normal = (
        figures.transform_filter(f"datum.weight == '{weight}'").properties() for weight in ("bold", "normal")
    )
    bold = bold.copy(deep=True)
    bold.mark.fontWeight = "bold"
    # Right of the middle, the word goes to the left of its line, where there is room.
    flip = data.threshold - data.low > 0.55 * (high - data.low)
    limit = alt.Chart(alt.Data(values=[{"index": data.threshold, "text": f"threshold {data.threshold:.2f}"}]))
    rule = limit.mark_rule(strokeDash=[4, 3], color=INK).encode(x="index:Q")
    word = limit.mark_text(
        align="right" if flip else "left", dx=4 if flip else -4, dy=-9, y=0, color=INK, fontSize=canvas.font - 1
    ).encode(x="index:Q", text="text:N")
    return alt.layer(bars, bold, normal, rule, word).properties(height=60 + 24 * len(rows))


def _anomaly_columns(data: _Anomalies, canvas: _Canvas) -> alt.LayerChart:
    """Bars that stand, for many classes: numbered below, flagged ones numbered above."""
    import altair as alt

    count = len(data.heights)
    rows = [
        {
            "left": number - 0.4,
            "right": number + 0.4,
            "zero": 0,
            "index": height,
            "colour": ACCENT if number in data.flagged else BAR,
        }
        for number, height in enumerate(data.heights)
    ]
    # A number is written above a flagged bar unless one with a higher bar already stands too close to it.
    distance = len(str(count)) * 0.75 * canvas.font * count / canvas.width
    written: list[int] = []
    for number in sorted(data.flagged, key=lambda flagged: -data.heights[flagged]):
        if all(abs(number - other) > distance for other in written):
            written.append(number)
    scale = alt.Scale(domain=[data.low, data.high + (data.high - data.low) * 0.08], nice=False)
    bars = (
        alt.Chart(alt.Data(values=rows))
        .mark_rect()
        .encode(
            x=alt.X(
                "left:Q",
                scale=alt.Scale(domain=[-1, count], nice=False, zero=False),
                axis=alt.Axis(title="Class number", grid=False, format="d", tickMinStep=1, tickCount=canvas.width // 60),
            ),
            x2="right:Q",
            y=alt.Y("zero:Q", scale=scale, axis=alt.Axis(title="Anomaly index", tickCount=5)),
            y2="index:Q",
            color=alt.Color("colour:N", scale=None),
        )
    )
    numbers = (
        alt.Chart(alt.Data(values=[{"left": n, "index": max(data.heights[n], 0), "text": str(n)} for n in written]))
        .mark_text(dy=-8, color=ACCENT, fontWeight="bold", fontSize=canvas.font)
        .encode(x="left:Q", y="index:Q", text="text:N")
    )
    limit = alt.Chart(alt.Data(values=[{"index": data.threshold, "text": f"threshold {data.threshold:.2f}"}]))
    rule = limit.mark_rule(strokeDash=[4, 3], color=INK).encode(y="index:Q")
    word = limit.mark_text(align="right", x="width", dy=-8, color=INK, fontSize=canvas.font - 1).encode(
        y="index:Q", text="text:N"
    )
    return alt.layer(bars, rule, word, numbers).properties(height=280)


def _figures(metric: Metric) -> list[tuple[str, Any]]:
    pairs = (("before", metric.before), ("after", metric.after))
    return [(when, figure) for when, figure in pairs if percent(figure)[1]]


def _metric_dots(metrics: Sequence[Metric], canvas: _Canvas) -> alt.LayerChart:
    import altair as alt

    labels = _row_keys([_in_lines(metric.name, canvas.name_cells) for metric in metrics])
    rows = [
        {"label": label, "when": when, **{end: 100 * getattr(figure, end) for end in ("value", "low", "high")}}
        for label, metric in zip(labels, metrics, strict=True)
        for when, figure in _figures(metric)
    ]
    moments = [when for when in ("before", "after") if any(row["when"] == when for row in rows)]
    looks = {"before": (MUTED, "circle"), "after": (ACCENT, "diamond")}
    legend = alt.Legend(title=None, orient="top", symbolSize=90) if len(moments) > 1 else None
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("label:N", sort=None, axis=_names_axis(labels, canvas)),
        yOffset=alt.YOffset("when:N", sort=moments, scale=alt.Scale(paddingOuter=0.6)),
        color=alt.Color(
            "when:N", legend=legend, scale=alt.Scale(domain=moments, range=[looks[when][0] for when in moments])
        ),
    )
    axis = alt.Axis(title="Percent", tickCount=5)
    spans = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", scale=alt.Scale(domain=[0, 100]), axis=axis), x2="high:Q"
    )
    dots = base.mark_point(filled=True, opacity=1, size=90).encode(
        x="value:Q",
        shape=alt.Shape(
            "when:N", legend=legend, scale=alt.Scale(domain=moments, range=[looks[when][1] for when in moments])
        ),
    )
    lines = max(label.count("\n") + 1 for label in labels)
    row_height = max(24 * len(moments) + 8, 18 * lines + 6)
    return alt.layer(spans, dots).properties(height=70 + 20 * (len(moments) > 1) + row_height * len(metrics))


def _curve(points: list[dict[str, float | None]], x_title: str, y_title: str, canvas: _Canvas) -> alt.LayerChart:
    import altair as alt

    whole = all(float(point["x"] or 0).is_integer() for point in points)
    base = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X(
            "x:Q",
            scale=alt.Scale(zero=False, nice=False),
            axis=alt.Axis(title=shorten(x_title, 40), grid=False, tickCount=canvas.width // 80, tickMinStep=int(whole)),
        ),
        y=alt.Y("y:Q", scale=alt.Scale(zero=False), axis=alt.Axis(title=shorten(y_title, 30), tickCount=5)),
    )
    line = base.mark_line(color=ACCENT, strokeWidth=2)
    dots = base.transform_filter("datum.y !== null").mark_circle(color=ACCENT, opacity=1, size=16 if len(points) <= 60 else 0)
    return alt.layer(line, dots).properties(height=220)


def _row_keys(labels: Sequence[str]) -> list[str]:
    return [f"{number}|{label}" for number, label in enumerate(labels)]


def _in_lines(name: str, cells: int) -> str:
    """Break a name into at most three lines of `cells` letters."""
    lines = [""]
    for word in shorten(name, 2 * cells).split():
        joined = f"{lines[-1]} {word}".strip()
        if width(joined) <= cells or not lines[-1]:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(shorten(line, cells) for line in lines)


def _names_axis(labels: Sequence[str], canvas: _Canvas) -> alt.Axis:
    import altair as alt

    # Room for the names in the widest of the fonts that a page may meet, not in the one that Vega measures with.
    cells = max(width(line) for label in labels for line in label.partition("|")[2].split("\n"))
    return alt.Axis(
        title=None,
        labelExpr=_NAME_OF_KEY,
        labelLimit=0,
        labelOverlap=False,
        minExtent=round(cells * 0.62 * canvas.font) + 8,
        ticks=False,
        domain=False,
        labelColor=INK,
        labelPadding=8,
    )


def _chart(title: str, explanation: str, label: str, draw: Callable[[_Canvas], alt.LayerChart]) -> Chart:
    wide, narrow = (harmless_svg(_to_svg(draw(canvas), canvas), plain(label)) for canvas in (_WIDE, _NARROW))
    return Chart(title=title, explanation=explanation, svg=wide, narrow_svg=narrow)


def _to_svg(chart: alt.LayerChart, canvas: _Canvas) -> str:
    import altair as alt
    import vl_convert as vlc

    sized = (
        chart.properties(
            width=canvas.width,
            autosize=alt.AutoSizeParams(type="fit", contains="padding"),
            padding=alt.PaddingParams if False else {"left": 4, "right": 12, "top": 24, "bottom": 6},
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
        )
        .configure_legend(labelFontSize=canvas.font, labelColor=INK)
    )
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg: str = vlc.vegalite_to_svg(sized.to_dict(), vl_version=version, allowed_base_urls=[])
    return svg
