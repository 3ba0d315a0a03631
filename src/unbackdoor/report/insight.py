"""What an inspection saw, as a page shows it."""

from __future__ import annotations

from unbackdoor.inspect import Insight
from unbackdoor.report.charts import series_chart
from unbackdoor.report.content import Chart, Fact, Verdict


def insight_verdict(insight: Insight) -> Verdict:
    """Return the banner, which says what was seen and judges nothing."""
    return Verdict(level="info", headline=insight.headline, detail=insight.detail, calibrated=True)


def insight_charts(insight: Insight) -> list[Chart]:
    """Return the figures, drawn."""
    return [
        series_chart(
            figure.series,
            marks=figure.marks,
            title=figure.title,
            explanation=figure.explanation,
            x_title=figure.x_title,
            y_title=figure.y_title,
            log_x=figure.log_x,
            log_y=figure.log_y,
        )
        for figure in insight.figures
    ]


def insight_facts(insight: Insight) -> dict[str, list[Fact]]:
    """Return the rows and the tables."""
    groups = {"What was measured": insight.rows, **insight.tables}
    return {title: [Fact(name=name, value=value) for name, value in rows] for title, rows in groups.items()}
