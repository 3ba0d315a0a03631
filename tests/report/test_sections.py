"""Parts of a page on one question each, and the drawings that inspections need, as text and in Chromium."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from tests.report.conftest import CIFAR, HOSTILE
from tests.report.test_browser import COLLISIONS, CONTRASTS
from tests.report.test_charts import SVG, bars, texts
from tests.report.test_page import Outline
from unbackdoor.errors import InputError
from unbackdoor.inspect import Figure, Insight, Matrix, Pictures
from unbackdoor.report import Report, Section, insight_section, matrix_chart, render, series_chart

Open = Callable[..., Any]
TITLES = {"title": "T", "explanation": "E.", "x_title": "answer", "y_title": "true class"}


def shares(count: int, right: float = 0.9) -> list[list[float]]:
    wrong = (1 - right) / (count - 1)
    return [[right if row == column else wrong for column in range(count)] for row in range(count)]


def seen() -> Insight:
    generator = torch.Generator().manual_seed(1)
    groups = {f"{number} {name}": torch.randn(2, 20, generator=generator) for number, name in enumerate(CIFAR)}
    points = {
        name: (place[0].tolist(), place[1].tolist()) for name, place in {**groups, "triggered": groups["3 cat"]}.items()
    }
    steps = {"clean": ([0.0, 0.5, 1.0], [0.004, 0.996, 0.996]), "triggered": ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])}
    axes = {"x_title": "x", "y_title": "y", "distinct": True, "stands_out": "triggered"}
    return Insight(
        headline="Something was seen.",
        detail="And `more` of it.",
        suspicious="If it were otherwise.",
        rows=[("a figure", "12 %")],
        figures=[
            Matrix(names=CIFAR, shares=shares(10), **TITLES),
            Figure(title="Points", explanation="A point is an image.", marks="points", series=points, **axes),
            Figure(title="Steps", explanation="A histogram.", marks="steps", series=steps, **axes),
            Pictures(title="Pictures", explanation="Of noise.", pictures=[("grey", torch.rand(1, 8, 8))] * 4),
        ],
        measured={},
    )


def two_parts() -> Report:
    return Report(title="t", sections=[insight_section("First", seen()), insight_section("Second", seen())])


def test_a_part_has_a_heading_its_sentences_and_its_drawings_in_order() -> None:
    outline = Outline(render(two_parts()))
    for words in ("Something was seen.", "What would be suspicious: If it were otherwise.", "a figure", "12 %"):
        assert outline.text.count(words) == 2
    html = render(two_parts())
    assert "And <code>more</code> of it." in html
    places = [html.index(f">{title}<") for title in ("T", "Points", "Steps", "Pictures", "In figures")]
    assert places == sorted(places)
    targets = {attributes["id"] for tag, attributes in outline.tags if tag == "h2"}
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert links == ["#section-1", "#section-2"]
    assert {link[1:] for link in links if link} <= targets


def test_what_is_explained_once_is_not_explained_again() -> None:
    one = Figure(
        title="A", explanation="A point is a neuron.", marks="points", series={"a": ([1], [2])}, x_title="", y_title=""
    )
    insight = Insight(headline="h", rows=(), figures=[one, replace(one, title="B")], measured={})
    first, second = insight_section("t", insight).drawings
    assert (first.explanation, second.explanation) == ("A point is a neuron.", "")


def test_a_single_part_needs_no_list_of_parts() -> None:
    html = render(Report(title="t", sections=[Section(title=HOSTILE, headline=HOSTILE, paragraphs=[HOSTILE])]))
    assert "<nav" not in html
    assert "<script>" not in html
    assert "In figures" not in html


def test_there_is_a_cell_for_each_share_that_can_be_seen_and_figures_where_there_is_room() -> None:
    for count, written in ((3, True), (12, True), (13, False), (30, False), (31, False), (200, False)):
        chart = matrix_chart([f"n{n}" for n in range(count)], shares(count, right=0.5), **TITLES)
        for svg in (chart.svg, chart.narrow_svg):
            drawn = count**2 if 0.5 / (count - 1) >= 0.005 else count
            assert bars(svg) == ["var(--accent)"] * drawn
            assert texts(svg).count("50") >= (count if written else 0)
            assert ("5 · n5" in texts(svg)) == (5 < count <= 30)


def test_a_cell_is_as_dark_as_its_share_is_large() -> None:
    chart = matrix_chart(["a", "b"], [[1.0, 0.0], [0.25, 0.75]], **TITLES)
    groups = [g for g in ElementTree.fromstring(chart.svg).iter(f"{SVG}g") if "mark-rect" in g.get("class", "")]
    assert [float(path.get("fill-opacity", "1")) for path in groups[0]] == pytest.approx([0.5, 0.155, 0.385], abs=0.006)


@pytest.mark.parametrize("count", [3, 31])
def test_rows_go_down_and_columns_to_the_right(count: int) -> None:
    values = [[0.0] * count for _ in range(count)]
    values[0][0] = values[0][2] = 0.5
    values[1][2] = 1.0
    chart = matrix_chart([f"n{n}" for n in range(count)], values, **TITLES)
    group = next(g for g in ElementTree.fromstring(chart.svg).iter(f"{SVG}g") if "mark-rect" in g.get("class", ""))
    corners = [re.findall(r"[\d.]+", path.get("d", ""))[:2] for path in group]
    (left, top), (right, same), (below, bottom) = [(float(x), float(y)) for x, y in corners]
    assert top == same < bottom
    assert left < right == below


def test_a_map_in_words_names_the_largest_cells_beside_the_diagonal() -> None:
    chart = matrix_chart(["cat", "dog", "2"], [[0.5, 0.5, 0], [0, 1, 0], [0, 0.2, 0.8]], **TITLES)
    label = ElementTree.fromstring(chart.svg).get("aria-label", "")
    assert "3 classes, true class by answer: on the diagonal stand 77 % on average." in label
    assert "50 % from 0 · cat to 1 · dog, 20 % from 2 to 1 · dog." in label


@pytest.mark.parametrize(
    ("names", "values", "words"),
    [
        ([], [], "one or more"),
        (["a", "b"], [[1.0, 0.0]], "as many rows and columns"),
        (["a", "b"], [[1.0, 0.0], [1.0]], "as many rows and columns"),
        (["a"], [[1.5]], "numbers from 0 to 1"),
        (["a"], [[float("nan")]], "numbers from 0 to 1"),
    ],
)
def test_maps_that_cannot_be_drawn_are_refused(names: list[str], values: list[list[float]], words: str) -> None:
    with pytest.raises(InputError, match=words):
        matrix_chart(names, values, **TITLES)


def test_classes_have_colours_and_shapes_of_their_own_and_what_stands_out_lies_on_top() -> None:
    series = {"triggered": ([1.0], [1.0]), **{str(n): ([1.0], [float(n)]) for n in range(10)}}
    chart = series_chart(series, marks="points", distinct=True, stands_out="triggered", **TITLES)
    group = next(g for g in ElementTree.fromstring(chart.svg).iter(f"{SVG}g") if "role-mark" in g.get("class", ""))
    looks = [(path.get("fill"), re.sub(r"[-\d.]+", "", path.get("d", ""))) for path in group]
    assert len(set(looks)) == 11
    assert looks[-1][0] == "currentColor"
    assert set(series) <= set(texts(chart.svg)), "all are in the legend"


def test_of_two_series_one_is_dashed_and_the_other_in_the_accent_colour() -> None:
    two = {"clean": ([0.0, 1.0], [0.2, 0.2]), "triggered": ([0.0, 1.0], [0.5, 0.5])}
    for marks in ("lines", "steps"):
        chart = series_chart(two, marks=marks, distinct=True, stands_out="triggered", **TITLES)  # type: ignore[arg-type]
        lines = {
            path.get("stroke"): path.get("stroke-dasharray")
            for group in ElementTree.fromstring(chart.svg).iter(f"{SVG}g")
            if "mark-line" in group.get("class", "")
            for path in group
        }
        assert lines["var(--muted)"] == "6,3"
        assert lines["var(--accent)"] in (None, "1,0")


def test_a_histogram_has_a_scale_of_percent_from_nothing_to_all() -> None:
    chart = series_chart({"clean": ([0.0, 0.5, 1.0], [0.3, 0.7, 0.7])}, marks="steps", **TITLES)
    assert {"0%", "1%", "10%", "100%"} <= set(texts(chart.svg))
    assert "Histogram of true class over answer" in ElementTree.fromstring(chart.svg).get("aria-label", "")


def test_large_round_values_are_written_out() -> None:
    chart = series_chart({"a": ([-40.0, 40.0], [0.0, 20.0])}, marks="points", **TITLES)
    assert not [text for text in texts(chart.svg) if "e+" in text]
    assert {"−40", "40", "20"} <= set(texts(chart.svg))


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 360, 641, 1280])
def test_parts_never_scroll_sideways_and_no_label_is_cut_or_covered(open_page: Open, width: int) -> None:
    page = open_page(two_parts(), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(COLLISIONS) == []
    shown = "narrow" if width <= 640 else "wide"
    assert page.locator(".drawing svg:visible").count() == page.locator(f".drawing .{shown} svg").count() == 6


@pytest.mark.browser
def test_parts_can_be_read_in_light_and_dark_and_reached_from_the_top(open_page: Open) -> None:
    for scheme in ("light", "dark"):
        page = open_page(two_parts(), scheme=scheme)
        assert [found for found in page.evaluate(CONTRASTS) if found[0] < 4.5] == []
    page.get_by_role("link", name="Second").click()
    top = "id => document.getElementById(id).getBoundingClientRect().top"
    assert -1 <= page.evaluate(top, "section-2") < 100
    assert page.get_by_role("heading", level=2).all_inner_texts() == ["First", "Second"]
    assert page.get_by_role("heading", level=3).count() == 10
    assert page.get_by_role("region", name="First").count() == 1


@pytest.mark.browser
def test_figures_in_cells_can_be_read_on_the_darkest_of_them(open_page: Open) -> None:
    for scheme in ("light", "dark"):
        page = open_page(Report(title="t", sections=[insight_section("One", seen())]), scheme=scheme)
        cell = page.locator(".drawing .wide .mark-rect path").first
        ground, ink = page.evaluate(
            """path => {
                const mix = (over, under, part) => over.map((value, n) => value * part + under[n] * (1 - part));
                const numbers = colour => colour.match(/[\\d.]+/g).map(Number).slice(0, 3);
                const style = getComputedStyle(path), paper = getComputedStyle(document.body);
                const share = Number(path.getAttribute('fill-opacity'));
                return [mix(numbers(style.fill), numbers(paper.backgroundColor), share), numbers(paper.color)];
            }""",
            cell.element_handle(),
        )

        def luminance(colour: list[float]) -> float:
            linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        dark, light = sorted([luminance(ground), luminance(ink)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, scheme
