"""Report pages: one self-contained HTML file per run."""

from unbackdoor.report.charts import anomaly_chart, curve_chart, histogram_chart, metric_chart, series_chart
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
from unbackdoor.report.distribution import distribution_chart, distribution_gallery
from unbackdoor.report.finding import finding_chart, finding_verdict, found_gallery, verdict_word
from unbackdoor.report.insight import insight_charts, insight_facts, insight_verdict
from unbackdoor.report.measured import candidate_facts, evaluation_metrics, loss_chart, repair_charts
from unbackdoor.report.page import render, write_report
from unbackdoor.report.pictures import amplified_difference
from unbackdoor.report.suspicion import suspicion_chart, suspicion_verdict, suspicious_galleries
from unbackdoor.report.text import short_path
from unbackdoor.report.trigger import trigger_gallery

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
    "candidate_facts",
    "curve_chart",
    "distribution_chart",
    "distribution_gallery",
    "evaluation_metrics",
    "finding_chart",
    "finding_verdict",
    "found_gallery",
    "histogram_chart",
    "insight_charts",
    "insight_facts",
    "insight_verdict",
    "loss_chart",
    "metric_chart",
    "render",
    "repair_charts",
    "series_chart",
    "short_path",
    "suspicion_chart",
    "suspicion_verdict",
    "suspicious_galleries",
    "trigger_gallery",
    "verdict_word",
    "write_report",
]
