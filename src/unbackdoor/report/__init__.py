"""Report pages: one self-contained HTML file per run."""

from unbackdoor.report.charts import anomaly_chart, curve_chart, metric_chart
from unbackdoor.report.content import (
    Chart,
    Fact,
    Gallery,
    Interval,
    IntervalLike,
    Metric,
    Picture,
    Report,
    Verdict,
)
from unbackdoor.report.measured import evaluation_metrics
from unbackdoor.report.page import render, write_report
from unbackdoor.report.pictures import amplified_difference
from unbackdoor.report.text import short_path

__all__ = [
    "Chart",
    "Fact",
    "Gallery",
    "Interval",
    "IntervalLike",
    "Metric",
    "Picture",
    "Report",
    "Verdict",
    "amplified_difference",
    "anomaly_chart",
    "curve_chart",
    "evaluation_metrics",
    "metric_chart",
    "render",
    "short_path",
    "write_report",
]
