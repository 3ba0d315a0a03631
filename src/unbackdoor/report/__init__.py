"""Report pages: one self-contained HTML file per run."""

from unbackdoor.report.charts import (
    anomaly_chart,
    curve_chart,
    histogram_chart,
    matrix_chart,
    metric_chart,
    series_chart,
)
from unbackdoor.report.content import (
    Chart,
    Fact,
    Gallery,
    Interval,
    IntervalLike,
    Metric,
    Picture,
    Report,
    Section,
    Verdict,
)
from unbackdoor.report.distribution import distribution_chart, distribution_gallery
from unbackdoor.report.finding import (
    calibration_rows,
    finding_chart,
    finding_verdict,
    found_gallery,
    said_rows,
    trigger_rows,
    verdict_word,
)
from unbackdoor.report.insight import insight_facts, insight_section
from unbackdoor.report.measured import candidate_facts, evaluation_metrics, loss_chart, repair_charts
from unbackdoor.report.page import attempt_report, render, write_report
from unbackdoor.report.pictures import amplified_difference
from unbackdoor.report.sharded import sharded_chart, sharded_galleries, sharded_top
from unbackdoor.report.suspicion import ranking_verdict, suspicion_chart, suspicion_verdict, suspicious_galleries
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
    "Section",
    "Verdict",
    "amplified_difference",
    "anomaly_chart",
    "attempt_report",
    "calibration_rows",
    "candidate_facts",
    "curve_chart",
    "distribution_chart",
    "distribution_gallery",
    "evaluation_metrics",
    "finding_chart",
    "finding_verdict",
    "found_gallery",
    "histogram_chart",
    "insight_facts",
    "insight_section",
    "loss_chart",
    "matrix_chart",
    "metric_chart",
    "ranking_verdict",
    "render",
    "repair_charts",
    "said_rows",
    "series_chart",
    "sharded_chart",
    "sharded_galleries",
    "sharded_top",
    "short_path",
    "suspicion_chart",
    "suspicion_verdict",
    "suspicious_galleries",
    "trigger_gallery",
    "trigger_rows",
    "verdict_word",
    "write_report",
]
