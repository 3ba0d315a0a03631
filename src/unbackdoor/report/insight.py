"""What an inspection saw, as a page shows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from unbackdoor.inspect import Figure, Insight, Matrix, Pictures
from unbackdoor.report.charts import matrix_chart, series_chart
from unbackdoor.report.content import Chart, Fact, Gallery, Picture, Section

Drawn = Figure | Matrix | Pictures


def insight_section(title: str, insight: Insight) -> Section:
    """Return the part of the page on one inspection: what was seen, what would be suspicious, drawings, figures."""
    suspicious = f"What would be suspicious: {insight.suspicious}" if insight.suspicious else ""
    return Section(
        title=title,
        headline=insight.headline,
        paragraphs=[paragraph for paragraph in (insight.detail, suspicious) if paragraph],
        drawings=[_drawing(figure) for figure in _explained_once(insight.figures)],
        facts=_facts(insight.rows),
    )


def insight_facts(insight: Insight) -> dict[str, list[Fact]]:
    """Return the tables, which are longer than what stands in its section."""
    return {title: _facts(rows) for title, rows in insight.tables.items()}


def _facts(rows: Sequence[tuple[str, str]]) -> list[Fact]:
    return [Fact(name=name, value=value) for name, value in rows]


def _explained_once(figures: Sequence[Drawn]) -> Iterator[Drawn]:
    """Yield the figures; what was explained for one model needs no words for the next."""
    explained: set[str] = set()
    for figure in figures:
        yield replace(figure, explanation="") if figure.explanation in explained else figure
        explained.add(figure.explanation)


def _drawing(figure: Drawn) -> Chart | Gallery:
    match figure:
        case Pictures():
            pictures = [Picture(caption=caption, image=image) for caption, image in figure.pictures]
            return Gallery(title=figure.title, explanation=figure.explanation, pictures=pictures)
        case Matrix():
            return matrix_chart(
                figure.names,
                figure.shares,
                title=figure.title,
                explanation=figure.explanation,
                x_title=figure.x_title,
                y_title=figure.y_title,
            )
    return series_chart(
        figure.series,
        marks=figure.marks,
        title=figure.title,
        explanation=figure.explanation,
        x_title=figure.x_title,
        y_title=figure.y_title,
        log_x=figure.log_x,
        log_y=figure.log_y,
        distinct=figure.distinct,
        stands_out=figure.stands_out,
    )
