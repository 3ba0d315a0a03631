"""Drawings of a page, a file a kind; `canvas` is what they share."""

from unbackdoor.report.drawings.anomaly import Bar, anomaly_columns, anomaly_rows
from unbackdoor.report.drawings.canvas import NARROW, WIDE, Canvas, to_svg
from unbackdoor.report.drawings.curves import curve, series
from unbackdoor.report.drawings.distinct import distinct
from unbackdoor.report.drawings.histogram import Bin, histogram
from unbackdoor.report.drawings.matrix import matrix
from unbackdoor.report.drawings.metrics import figures, metric_dots

__all__ = [
    "NARROW",
    "WIDE",
    "Bar",
    "Bin",
    "Canvas",
    "anomaly_columns",
    "anomaly_rows",
    "curve",
    "distinct",
    "figures",
    "histogram",
    "matrix",
    "metric_dots",
    "series",
    "to_svg",
]
