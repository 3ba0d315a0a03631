"""Drawing with Altair and vl-convert, without a browser and without the network.

Colours are the names that the page's style sheet gives them, so a drawing follows light, dark and print like
the text around it. Text from outside is only ever data, never part of an expression that Vega evaluates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from unbackdoor.report.content import IntervalLike, Metric
from unbackdoor.report.text import shorten, width

if TYPE_CHECKING:
    import altair as alt

INK = "currentColor"
MUTED = "var(--muted)"
FAINT = "var(--line)"
BAR = "var(--bar)"
ACCENT = "var(--accent)"

FIRST_TO_LAST = ((63, 127, 191), (138, 111, 168), (208, 102, 42))
"""Colours of the first, the middle and the last of many series, as red, green and blue; seen on light and on dark."""

LETTER = 0.64
"""Width of a letter over the size of the font, in the widest of the common system fonts."""

# Names are keyed by their row, since two classes may have the same name; the key is cut off for display.
_NAME_OF_KEY = r"split(slice(datum.label, indexof(datum.label, '|') + 1), '\n')"

_AXIS_HEIGHT = 54  # padding, and ticks, figures and title of the axis below
_WORD_HEIGHT = 18  # a word above the plot


class Canvas(NamedTuple):
    """The room that a chart has: width and letters in pixels, names in letters."""

    width: int
    font: int
    name_cells: int


WIDE = Canvas(width=720, font=13, name_cells=26)
NARROW = Canvas(width=340, font=12, name_cells=16)


class Bar(NamedTuple):
    """The anomaly index of a class: its name, the finite height that is drawn, the figure in words."""

    name: str
    height: float
    text: str
    flagged: bool


class Bin(NamedTuple):
    """A range of scores, and how many rows lie in it: those that are not flagged, and those that are."""

    left: float
    right: float
    plain: int
    flagged: int


def anomaly_rows(bars: Sequence[Bar], threshold: float, canvas: Canvas) -> alt.LayerChart:
    """Draw bars that lie, like a table: names at the left, bars, figures at the right."""
    import altair as alt

    labels = _row_keys([shorten(bar.name, canvas.name_cells) for bar in bars])
    texts = ["flagged " * bar.flagged + bar.text for bar in bars]
    rows = [
        {"label": label, "index": bar.height, "text": text, "flagged": bar.flagged}
        for label, bar, text in zip(labels, bars, texts, strict=True)
    ]
    axis = _names_axis(labels, canvas)
    plot = canvas.width - _names_width(labels, canvas) - 2
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
    return alt.LayerChart(layer=layers, **_frame(24 * len(rows), above=_WORD_HEIGHT))


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
    return alt.LayerChart(layer=layers, **_frame(220, above=_WORD_HEIGHT))


def figures(metric: Metric) -> list[tuple[str, IntervalLike]]:
    """Return the figures of a metric that were measured, with "before" or "after"."""
    pairs = (("before", metric.before), ("after", metric.after))
    return [(when, figure) for when, figure in pairs if figure is not None and math.isfinite(figure.value)]


def metric_dots(metrics: Sequence[Metric], canvas: Canvas) -> alt.LayerChart:
    """Draw the figures of each metric as marks on one scale, with their intervals."""
    import altair as alt

    labels = _row_keys([_in_lines(metric.name, canvas.name_cells) for metric in metrics])
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
        y=alt.Y("label:N", sort=labels, axis=_names_axis(labels, canvas)),
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
    frame = _frame(row_height * len(metrics), above=26 if legend else 0)
    return alt.LayerChart(layer=[spans, marks], **frame)


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
    return alt.LayerChart(layer=[line, dots], **_frame(220))


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
        x=_axis("x", titles[0], logs[0], canvas.width // 80),
        y=_axis("y", titles[1], logs[1], 5),
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
    return alt.LayerChart(layer=[drawn], **_frame(300 if marks == "points" else 240, above=22 * rows_of_legend))


def _axis(channel: Literal["x", "y"], title: str, log: bool, ticks: int) -> Any:
    import altair as alt

    kind = alt.X if channel == "x" else alt.Y
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    return kind(
        f"{channel}:Q",
        scale=scale,
        axis=alt.Axis(title=shorten(title, 30), tickCount=ticks, grid=channel == "y", format="~g" if log else ""),
    )


def _between(part: float) -> str:
    """Return the colour at this part of the way from the first to the last, 0 to 1."""
    first, middle, last = FIRST_TO_LAST
    one, other, way = (first, middle, 2 * part) if part < 0.5 else (middle, last, 2 * part - 1)
    return "#" + "".join(f"{round(a + (b - a) * way):02x}" for a, b in zip(one, other, strict=True))


def histogram(bins: Sequence[Bin], x_title: str, canvas: Canvas) -> alt.LayerChart:
    """Draw the bins on a logarithmic scale of counts, flagged rows above the others."""
    import altair as alt

    top = max(bar.plain + bar.flagged for bar in bins)
    y = alt.Y(
        "from:Q",
        # Logarithmic, but for 0, which has a place on it.
        scale=alt.Scale(type="symlog", domain=[0, 1.3 * top], nice=False),
        axis=alt.Axis(title="Rows", values=[0, *(10**power for power in range(len(str(top))))], format="~s"),
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
    return alt.LayerChart(layer=layers, **_frame(220))


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


def _frame(plot: int, above: int = 0) -> dict[str, Any]:
    """Return height and padding of a chart: `plot` pixels, and `above` it for a word or a legend."""
    return {"height": plot + above + _AXIS_HEIGHT, "padding": {"left": 0, "right": 2, "top": 4, "bottom": 4}}


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


def _row_keys(labels: Sequence[str]) -> list[str]:
    return [f"{number}|{label}" for number, label in enumerate(labels)]


def _in_lines(name: str, cells: int) -> str:
    """Break a name between words into at most three lines of `cells` letters, cutting what is longer."""
    lines = [""]
    for word in shorten(name, 3 * cells).split():
        if lines[-1] and width(f"{lines[-1]} {word}") > cells and len(lines) < 3:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(shorten(line, cells) for line in lines)


def _names_width(labels: Sequence[str], canvas: Canvas) -> int:
    """Return the pixels that the longest line of the names needs in the widest font that a page may meet."""
    cells = max(width(line) for label in labels for line in label.partition("|")[2].split("\n"))
    return round(cells * LETTER * canvas.font) + 6


def _names_axis(labels: Sequence[str], canvas: Canvas) -> alt.Axis:
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
        labelPadding=_names_width(labels, canvas),
    )
