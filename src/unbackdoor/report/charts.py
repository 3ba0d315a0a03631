"""Charts of a report: what is drawn and how it is put into words; `drawings` does the drawing.

Each chart exists wide (desk) and narrow (phone), in the colours of the page, and says in its `aria-label`
what it shows, for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from unbackdoor.errors import InputError
from unbackdoor.report import drawings
from unbackdoor.report.content import Chart, Metric
from unbackdoor.report.svg import harmless_svg
from unbackdoor.report.text import change, percent, shorten, shown

if TYPE_CHECKING:
    import altair as alt

MOST_NAMED_CLASSES = 30
"""With more classes than this, names would fill more than a screen: bars stand side by side, numbered."""

MOST_SUSPECTS = 8
"""Flagged classes that are listed in words; the rest are counted."""

HISTOGRAM_BINS = 60

MOST_POINTS = 500
"""Points of a curve that are drawn; more cannot be told apart at this size."""

MOST_MARKS = 2500
"""Points of all series of a chart that are drawn; a page with more of them opens slowly."""

MOST_TOLD = 3
"""Cells of a map that are told in words."""

_KINDS = {"points": "Scatter plot", "lines": "Line chart", "steps": "Histogram"}


def anomaly_chart(
    class_names: Sequence[str], indices: Sequence[float], threshold: float, flagged: Sequence[int]
) -> Chart:
    """Draw the anomaly index of each class as a bar and the threshold as a line; flagged classes stand out.

    Args:
        class_names: one name per class.
        indices: anomaly index per class; one that is not finite is drawn as no bar and said in words.
        threshold: the index from which on a class is suspect.
        flagged: numbers of the classes that the scanner suspects.

    Raises:
        InputError: names and indices differ in number, or a flagged number is not a class.
    """
    if len(class_names) != len(indices) or not class_names:
        raise InputError(
            f"an anomaly chart needs one index per class, found {len(indices)} for {len(class_names)} classes"
        )
    if not set(flagged) <= set(range(len(indices))):
        raise InputError(f"flagged classes {sorted(flagged)} must be numbers from 0 to {len(indices) - 1}")
    names = [_class_label(number, name) for number, name in enumerate(class_names)]
    bars = [
        drawings.Bar(
            name=name,
            height=index if math.isfinite(index) else 0.0,
            text=_index_text(index),
            flagged=number in set(flagged),
        )
        for number, (name, index) in enumerate(zip(names, indices, strict=True))
    ]
    suspects = [f"{shorten(bar.name, 40)} ({bar.text})" for bar in bars if bar.flagged]
    more = f" and {len(suspects) - MOST_SUSPECTS} more" if len(suspects) > MOST_SUSPECTS else ""
    listed = ", ".join(suspects[:MOST_SUSPECTS]) + more
    answer = f"Flagged: {listed}." if suspects else "No class is flagged."
    draw = drawings.anomaly_rows if len(bars) <= MOST_NAMED_CLASSES else drawings.anomaly_columns
    return _chart(
        title="Anomaly index of each class",
        explanation=f"The dashed line is the threshold, {threshold:.2f}. {answer}",
        label=f"Bar chart of the anomaly index of {len(bars)} classes, threshold {threshold:.2f}. {answer}",
        draw=lambda canvas: draw(bars, threshold, canvas),
    )


def metric_chart(metrics: Sequence[Metric]) -> Chart:
    """Draw each metric before (circle) and after (diamond) on a scale of percent, its interval as a line.

    Raises:
        InputError: no metric has a figure.
    """
    measured = [metric for metric in metrics if drawings.figures(metric)]
    if not measured:
        raise InputError("a metric chart needs at least one metric with a figure; leave the chart out")
    sentences = []
    for metric in measured:
        words = [f"{when} {' '.join(percent(figure))}" for when, figure in drawings.figures(metric)]
        opinion = change(metric)[1]
        sentences.append(f"{metric.name}: {', '.join([*words, opinion] if opinion else words)}.")
    return _chart(
        title="The figures with their intervals",
        explanation="Marks are the figures, the lines through them their intervals.",
        label="Dot chart in percent. " + " ".join(sentences),
        draw=lambda canvas: drawings.metric_dots(measured, canvas),
    )


def histogram_chart(scores: Sequence[float], flagged: Sequence[bool], x_title: str, held: str = "poisoned") -> Chart:
    """Draw how many rows have which score, flagged ones in another colour, on a scale that shows single rows too.

    Args:
        scores: finite, one a row.
        flagged: whether each row is held poisoned.
        x_title: what the scores are.
        held: what flagged rows are held to be.

    Raises:
        InputError: no scores, scores that are not finite, or another number of flags.
    """
    if not scores or len(scores) != len(flagged) or not all(map(math.isfinite, scores)):
        raise InputError(f"histogram {x_title!r}: needs one flag for each of one or more finite scores")
    low, high = min(scores), max(scores)
    step = (high - low) / HISTOGRAM_BINS or 1.0
    counts = [[0, 0] for _ in range(HISTOGRAM_BINS)]
    for score, flag in zip(scores, flagged, strict=True):
        counts[min(int((score - low) / step), HISTOGRAM_BINS - 1)][bool(flag)] += 1
    plain, marked = zip(*counts)
    return counted_chart(plain, marked, (low, high), x_title, held)


def counted_chart(
    plain: Sequence[int], flagged: Sequence[int], ends: tuple[float, float], x_title: str, held: str = "poisoned"
) -> Chart:
    """Draw the same of rows that were counted elsewhere.

    Args:
        plain: rows that are not held poisoned, in equal steps of the score.
        flagged: rows that are, in the same steps.
        ends: lowest and highest score.
        x_title: what the scores are.
        held: what flagged rows are held to be.
    """
    low, high = ends
    step = (high - low) / len(plain) or 1.0
    bins = [
        drawings.Bin(left=low + number * step, right=low + (number + 1) * step, plain=few, flagged=marked)
        for number, (few, marked) in enumerate(zip(plain, flagged, strict=True))
    ]
    rows, marked = sum(plain) + sum(flagged), sum(flagged)
    answer = f"{marked:,} of {rows:,} rows are held {held}." if marked else f"No row is held {held}."
    return _chart(
        title=f"Rows by {x_title}",
        explanation=f"{answer} The scale of the counts is logarithmic, so that few rows can be seen beside many.",
        label=f"Histogram of {x_title} of {rows} rows, from {low:.3g} to {high:.3g}. {answer}",
        draw=lambda canvas: drawings.histogram(bins, x_title, canvas),
    )


def curve_chart(x: Sequence[float], y: Sequence[float], x_title: str, y_title: str) -> Chart:
    """Draw `y` over `x` as a line: a loss or an accuracy over epochs. Points that are not finite leave a gap.

    Raises:
        InputError: `x` and `y` differ in length, or no point is finite.
    """
    finite = [value for value in y if math.isfinite(value)]
    if len(x) != len(y) or not finite:
        raise InputError(
            f"curve {y_title!r}: needs as many y as x and at least one finite, found {len(y)} for {len(x)}"
        )
    # Every n-th point counted from the end, so that the last one, which people look for, is always there.
    step = -(-len(x) // MOST_POINTS)
    points = list(zip(x, y, strict=True))[::-step][::-1]
    return _chart(
        title=f"{y_title} over {x_title.lower() if x_title.istitle() else x_title}",
        explanation="",
        label=(
            f"Line chart of {y_title} over {x_title}, {len(y)} points: "
            f"from {finite[0]:.4g} to {finite[-1]:.4g}, lowest {min(finite):.4g}, highest {max(finite):.4g}."
        ),
        draw=lambda canvas: drawings.curve(points, x_title, y_title, canvas),
    )


def series_chart(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    marks: Literal["points", "lines", "steps"],
    title: str,
    explanation: str,
    x_title: str,
    y_title: str,
    log_x: bool = False,
    log_y: bool = False,
    distinct: bool = False,
    stands_out: str = "",
) -> Chart:
    """Draw named series as points, lines or outlines of histograms.

    Args:
        series: x and y values by name. Those that are not finite, or not above 0 on a logarithmic axis, are left out,
            and the explanation says how many.
        marks: how; for "steps", y is a share from 0 to 1, from its x to the next.
        title: of the chart.
        explanation: how to read it.
        x_title: of the axis.
        y_title: of the axis.
        log_x: whether the axis is logarithmic.
        log_y: the same of the other.
        distinct: whether each series has a look of its own, as it always has for "steps"; otherwise, of more than two,
            colours run from the first to the last.
        stands_out: the name of the series that is drawn on top, if `distinct`.

    Raises:
        InputError: x and y of a series differ in number, or nothing can be drawn.
    """
    shown_points: dict[str, list[tuple[float, float]]] = {}
    given = 0
    for name, (xs, ys) in series.items():
        if len(xs) != len(ys):
            raise InputError(f"chart {title!r}: needs as many y as x, found {len(ys)} for {len(xs)}")
        given += len(xs)
        shown_points[name] = [
            (float(x), float(y)) for x, y in zip(xs, ys, strict=True) if _drawable(x, log_x) and _drawable(y, log_y)
        ]
    count = sum(map(len, shown_points.values()))
    if not count:
        raise InputError(f"chart {title!r}: there is no point that can be drawn; leave the chart out")
    # Counted from the end of each series, so that its last point, which people look for, is always there.
    step = -(-count // MOST_MARKS)
    thinned = {name: points[::-step][::-1] for name, points in shown_points.items()}
    left_out = f" {given - count} points cannot stand on these axes and are left out." if given > count else ""
    every = f" One point in {step} is drawn." if step > 1 else ""
    values = [y for points in shown_points.values() for _, y in points]
    titles, logs = (x_title, y_title), (log_x, log_y)

    def draw(canvas: drawings.Canvas) -> alt.LayerChart:
        if marks == "steps" or distinct:
            return drawings.distinct(thinned, marks, titles, logs, stands_out, canvas)
        return drawings.series(thinned, marks, titles, logs, canvas)

    return _chart(
        title=title,
        explanation=f"{explanation}{every}{left_out}",
        label=(
            f"{_KINDS[marks]} of {y_title} over {x_title}: {count} points in"
            f" {len(series)} series ({shorten(', '.join(series), 80)}), from {min(values):.3g} to {max(values):.3g}."
        ),
        draw=draw,
    )


def matrix_chart(
    names: Sequence[str],
    shares: Sequence[Sequence[float]],
    *,
    title: str,
    explanation: str,
    x_title: str,
    y_title: str,
) -> Chart:
    """Draw shares of classes by classes as a map of cells.

    Args:
        names: of the classes.
        shares: 0 to 1, as many rows, and columns in each, as names.
        title: of the chart.
        explanation: how to read it.
        x_title: of the columns.
        y_title: of the rows.

    Raises:
        InputError: another number of rows or columns than names, or a value that is no share.
    """
    if not names or {len(shares), *map(len, shares)} != {len(names)}:
        raise InputError(f"map {title!r}: needs as many rows and columns of shares as names, one or more")
    if not all(0 <= share <= 1 for row in shares for share in row):
        raise InputError(f"map {title!r}: shares are numbers from 0 to 1")
    labels = [_class_label(number, name) for number, name in enumerate(names)]
    off = [(share, row, column) for row, of in enumerate(shares) for column, share in enumerate(of) if row != column]
    told = ", ".join(
        f"{100 * share:.0f} % from {shorten(labels[row], 24)} to {shorten(labels[column], 24)}"
        for share, row, column in sorted(off, reverse=True)[:MOST_TOLD]
        if share > 0
    )
    diagonal = sum(row[number] for number, row in enumerate(shares)) / len(names)
    return _chart(
        title=title,
        explanation=explanation,
        label=(
            f"Map of {len(names)} classes, {y_title} by {x_title}: on the diagonal stand {100 * diagonal:.0f} % on"
            " average." + (f" The largest others: {told}." if told else "")
        ),
        draw=lambda canvas: drawings.matrix(labels, shares, (x_title, y_title), canvas),
    )


def _drawable(value: float, log: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not log)


def _class_label(number: int, name: str) -> str:
    name = shown(name).strip()
    return name if name == str(number) else f"{number} · {name}"


def _index_text(index: float) -> str:
    return f"{index:.2f}".replace("-", "−") if math.isfinite(index) else "not finite"


def _chart(title: str, explanation: str, label: str, draw: Callable[[drawings.Canvas], alt.LayerChart]) -> Chart:
    wide, narrow = (
        harmless_svg(drawings.to_svg(draw(canvas), canvas), shown(label)) for canvas in (drawings.WIDE, drawings.NARROW)
    )
    return Chart(title=title, explanation=explanation, svg=wide, narrow_svg=narrow)
