from __future__ import annotations

import math
import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from unbackdoor.errors import InputError
from unbackdoor.report import (
    Interval,
    Metric,
    anomaly_chart,
    curve_chart,
    histogram_chart,
    metric_chart,
    series_chart,
)
from unbackdoor.report.svg import harmless_svg

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["\n".join(node.itertext()) for node in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def bars(svg: str) -> list[str]:
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "mark-rect" in g.get("class", "")]
    return [path.get("fill", "") for group in groups for path in group]


@pytest.mark.parametrize("count", [2, 10, 30, 31, 200])
def test_there_is_a_bar_per_class_and_the_flagged_are_in_the_accent_colour(count: int) -> None:
    chart = anomaly_chart([f"class {n}" for n in range(count)], [1 + n / count for n in range(count)], 1.5, [0, 1])
    for svg in (chart.svg, chart.narrow_svg):
        assert sorted(bars(svg)) == ["var(--accent)"] * 2 + ["var(--bar)"] * (count - 2)


def test_a_chart_in_words_names_threshold_and_flagged_classes() -> None:
    chart = anomaly_chart(["cat", "dog", "2"], [0.5, 3.14159, 4], 2.0, [2, 1])
    assert "threshold, 2.00. Flagged: 1 · dog (3.14), 2 (4.00)." in chart.explanation
    label = ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert "3 classes" in label
    assert "1 · dog (3.14), 2 (4.00)" in label
    assert "No class is flagged" in anomaly_chart(["cat", "dog"], [0.5, 0.6], 2.0, []).explanation


def test_many_flagged_classes_are_counted_not_listed() -> None:
    chart = anomaly_chart([str(n) for n in range(100)], [3.0] * 100, 2.0, list(range(100)))
    assert chart.explanation.endswith("7 (3.00) and 92 more.")


def test_classes_of_the_same_name_keep_their_own_bars_and_labels() -> None:
    chart = anomaly_chart(["cat", "cat", "cat"], [1, 2, 3], 2.5, [])
    assert len(bars(chart.svg)) == 3
    assert {"0 · cat", "1 · cat", "2 · cat"} <= set(texts(chart.svg))


def test_long_class_names_are_shortened() -> None:
    chart = anomaly_chart(["x" * 100, "y"], [1, 2], 2.5, [])
    assert max(map(len, texts(chart.svg))) < 30
    assert max(map(len, texts(chart.narrow_svg))) < 20


def test_an_index_that_is_not_finite_is_said_and_does_not_stretch_the_scale() -> None:
    chart = anomaly_chart(["a", "b", "c", "d"], [1, math.nan, math.inf, -1.5], 2.0, [2])
    found = texts(chart.svg)
    assert "not finite" in found
    assert "flagged not finite" in found
    assert "−1.50" in found
    assert not re.search("NaN|Infinity", chart.svg)


@pytest.mark.parametrize(
    ("names", "indices", "flagged", "words"),
    [
        (["a"], [1, 2], [], "one index per class, found 2 for 1 classes"),
        ([], [], [], "one index per class, found 0 for 0 classes"),
        (["a", "b"], [1, 2], [2], r"flagged classes \[2\] must be numbers from 0 to 1"),
        (["a"], [1], [-1], r"flagged classes \[-1\] must be numbers from 0 to 0"),
    ],
)
def test_anomalies_that_do_not_fit_their_classes_are_refused(
    names: list[str], indices: list[float], flagged: list[int], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        anomaly_chart(names, indices, 2.0, flagged)


def test_names_from_outside_are_data_never_expressions_or_markup() -> None:
    name = "'+datum.index+'|\\n<script>alert(1)</script>\"&\x1b[31m"
    chart = anomaly_chart([name, "b"], [1, 2], 2.5, [0])
    nodes = {node.tag for node in ElementTree.fromstring(chart.svg).iter()}
    assert nodes <= {SVG + tag for tag in ("svg", "g", "path", "line", "text", "tspan")}
    assert "0 · '+datum.index+'|\\n<sc…" in texts(chart.svg)
    assert "\x1b" not in chart.svg


def test_a_histogram_counts_every_row_once_and_shows_flagged_ones_apart() -> None:
    scores = [0.0] * 50 + [0.5] * 30 + [1.0] * 3
    chart = histogram_chart(scores, [False] * 80 + [True] * 3, "suspicion score")
    for svg in (chart.svg, chart.narrow_svg):
        assert sorted(bars(svg)) == ["var(--accent)", "var(--bar)", "var(--bar)"]
    assert chart.explanation.startswith("3 of 83 rows are held poisoned.")
    assert "from 0 to 1. 3 of 83 rows" in ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert histogram_chart([2.0, 2.0], [False] * 2, "x").explanation.startswith("No row is held poisoned.")


@pytest.mark.parametrize(
    ("scores", "flagged"), [([], []), ([1.0], []), ([math.nan], [False]), ([1.0, math.inf], [False, True])]
)
def test_histograms_of_what_is_no_score_are_refused(scores: list[float], flagged: list[bool]) -> None:
    with pytest.raises(InputError, match="one flag for each of one or more finite scores"):
        histogram_chart(scores, flagged, "x")


def test_the_metric_chart_shows_each_figure_that_was_measured() -> None:
    metrics = [
        Metric(name="ASR", before=interval(0.9), after=interval(0.1), better="lower"),
        Metric(name="DER", after=interval(0.8), better="higher"),
        Metric(name="RA", better="higher"),
    ]
    chart = metric_chart(metrics)
    found = texts(chart.svg)
    assert {"ASR", "DER", "before", "after"} <= set(found)
    assert "RA" not in found
    label = ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert "ASR: before 90.0 % [85.0, 95.0], after 10.0 % [5.0, 15.0], better." in label
    assert "DER: after 80.0 % [75.0, 85.0]." in label


def test_a_chart_of_one_moment_has_no_legend_and_of_nothing_is_refused() -> None:
    assert "before" not in texts(metric_chart([Metric(name="ASR", before=interval(0.9), better="lower")]).svg)
    with pytest.raises(InputError, match="at least one"):
        metric_chart([Metric(name="RA", better="higher")])


def interval(value: float) -> Interval:
    return Interval(value=value, low=value - 0.05, high=value + 0.05)


def test_a_curve_in_words_gives_its_ends_and_extremes() -> None:
    chart = curve_chart([1, 2, 3, 4], [2.0, 0.25, 3.5, 1.0], "Epoch", "Loss")
    assert chart.title == "Loss over epoch"
    label = ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert "4 points: from 2 to 1, lowest 0.25, highest 3.5." in label


def test_long_curves_are_thinned_but_keep_their_last_point_and_stay_small() -> None:
    last = 77_777.0
    chart = curve_chart(list(range(5001)), [float(n % 7) for n in range(5000)] + [last], "Step", "Loss")
    assert len(chart.svg) < 100_000
    assert any("70,000" in text or "80,000" in text for text in texts(chart.svg))


@pytest.mark.parametrize(("x", "y"), [([1, 2], [1]), ([], []), ([1, 2], [math.nan, math.inf])])
def test_curves_without_points_are_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(InputError, match="Loss"):
        curve_chart(x, y, "Epoch", "Loss")


def test_the_same_chart_is_drawn_the_same() -> None:
    first, second = (anomaly_chart(["a", "b"], [1, 3], 2.0, [1]) for _ in range(2))
    assert first == second


HOSTILE_SVG = """<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink"
  viewBox="0 0 9 9" onload="alert(1)" style="position:fixed" width="9999">
  <script>alert(1)</script><style>*{display:none}</style><foreignObject><b>x</b></foreignObject>
  <a x:href="javascript:alert(1)"><path d="M0,0h1"/></a><image x:href="https://x.example/i.png"/>
  <rect id="keep" width="1.23456" height="2" onclick="alert(1)" fill="url(https://x.y/p#p)" stroke="red"/>
  <set attributeName="onload" to="alert(1)"/></svg>"""


def test_only_harmless_shapes_and_attributes_of_a_drawing_are_kept() -> None:
    result = harmless_svg(HOSTILE_SVG, 'a "label" <b>')
    root = ElementTree.fromstring(result)
    assert root.attrib == {"viewBox": "0 0 9 9", "role": "img", "aria-label": 'a "label" <b>'}
    assert [child.tag for child in root] == [f"{SVG}rect"]
    assert root[0].attrib == {"width": "1.23", "height": "2", "stroke": "red"}
    assert harmless_svg(result) == result


@pytest.mark.parametrize("svg", ["", "<p>", "<svg viewBox='0 0 1 1'/>", '<svg xmlns="http://www.w3.org/2000/svg"/>'])
def test_what_is_no_drawing_is_refused(svg: str) -> None:
    with pytest.raises(InputError, match="SVG"):
        harmless_svg(svg)


def test_the_drawing_library_is_loaded_only_when_something_is_drawn() -> None:
    code = "import sys, unbackdoor.report; sys.exit('altair' in sys.modules or 'vl_convert' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def circles(svg: str) -> list[str]:
    groups = [g for g in ElementTree.fromstring(svg).iter(f"{SVG}g") if "mark-symbol" in g.get("class", "")]
    return [path.get("fill", "") for g in groups if "marks" in g.get("class", "") for path in g]


TITLES: Any = {"title": "T", "explanation": "", "x_title": "x", "y_title": "y"}


def test_points_of_many_series_run_through_the_colours_and_a_few_are_named() -> None:
    series = {f"layer{n}": ([1.0, 2.0], [n + 1.0, n + 2.0]) for n in range(9)}
    chart = series_chart(series, marks="points", title="T", explanation="E.", x_title="x", y_title="y", log_x=True)
    for svg in (chart.svg, chart.narrow_svg):
        assert {"#3f7fbf", "#8a6fa8", "#d0662a"} <= set(circles(svg))
        assert {"1 layer0", "5 layer4", "9 layer8"} <= set(texts(svg))
        assert "2 layer1" not in texts(svg)
    label = ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert "Scatter plot of y over x: 18 points in 9 series" in label
    assert chart.explanation == "E."


def test_two_series_are_in_the_accent_and_the_muted_colour_and_one_has_no_legend() -> None:
    both = {"suspect": ([1, 2, 3], [3.0, 2.0, 1.0]), "reference": ([1, 2, 3], [1.0, 2.0, 1.5])}
    chart = series_chart(both, marks="lines", title="T", explanation="", x_title="step", y_title="norm")
    strokes = [node.get("stroke") for node in ElementTree.fromstring(chart.svg).iter(f"{SVG}path")]
    assert {"var(--accent)", "var(--muted)"} <= set(strokes)
    assert {"suspect", "reference"} <= set(texts(chart.svg))
    alone = series_chart({"suspect": both["suspect"]}, marks="lines", **TITLES)
    assert "suspect" not in texts(alone.svg)


def test_points_that_cannot_be_drawn_are_counted_and_many_are_thinned() -> None:
    kept = series_chart(
        {"a": ([1.0, 2.0, 3.0, 4.0], [0.0, 1.0, math.nan, 2.0])},
        marks="points",
        title="T",
        explanation="E.",
        x_title="x",
        y_title="y",
        log_y=True,
    )
    assert kept.explanation == "E. 2 points cannot stand on these axes and are left out."
    many = {"a": (list(range(6000)), [1.0 + n for n in range(6000)])}
    thinned = series_chart(many, marks="points", title="T", explanation="E.", x_title="x", y_title="y")
    assert "Every 3th" not in thinned.explanation
    assert "One point in 3 is drawn." in thinned.explanation
    assert len(circles(thinned.svg)) == 2000


def test_series_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(InputError, match="as many y as x"):
        series_chart({"a": ([1.0], [])}, marks="lines", **TITLES)
    with pytest.raises(InputError, match="no point that can be drawn"):
        series_chart({"a": ([0.0], [1])}, marks="lines", **TITLES, log_x=True)


def test_names_of_series_from_outside_are_data_never_markup() -> None:
    name = "<script>alert(1)</script>'+datum.x+'"
    chart = series_chart(
        {name: ([1, 2], [1, 2]), "b": ([1, 2], [2, 1])},
        marks="lines",
        title="T",
        explanation="",
        x_title="x",
        y_title="y",
    )
    assert {node.tag for node in ElementTree.fromstring(chart.svg).iter()} <= {
        SVG + tag for tag in ("svg", "g", "path", "line", "text", "tspan")
    }
    assert any(text.startswith("<script>alert(1)") for text in texts(chart.svg))
