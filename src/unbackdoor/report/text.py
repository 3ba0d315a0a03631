"""Text for pages: hiding folders in what strangers wrote, and writing figures for people."""

from __future__ import annotations

import math
import re
import unicodedata
from pathlib import PurePath

from unbackdoor.report.content import IntervalLike, Metric
from unbackdoor.text import plain

# An absolute path: in quotes it may hold spaces, bare it ends at one. Something before the slash, such as in
# "and/or", "https:/" or "</p>", means that it is not one.
_PATHS = re.compile(
    r"""(?P<quote>['"])(?P<quoted>(?:file:/|[A-Za-z]:[/\\]|/|\\\\)(?:(?!(?P=quote)).)+)(?P=quote)"""
    r"""|(?:file:/{1,3}|(?<![\w.~/<])/(?!/))[^\s/'"]+(?:/[^\s/'"]+)+"""
    r"""|(?<!\w)(?:[A-Za-z]:\\|\\\\)[^\s\\'"]+(?:\\[^\s\\'"]+)+"""
)


def short_path(path: str | PurePath) -> str:
    """Return the last two components of `path`: a shared page does not tell where its author keeps files."""
    parts = re.split(r"[/\\]+", plain(str(path)))
    kept = [part for part in parts if part not in {"", ".", "file:"} and not re.fullmatch(r"[A-Za-z]:", part)]
    return "/".join(kept[-2:])


def shown(text: str) -> str:
    """Return `text` as pages show it: cleaned by `plain`, and absolute paths within it shortened.

    This is the safety net for paths inside commands and messages. A bare path with spaces cannot be told from
    its surroundings, so whoever has a path as such passes it through `short_path`.
    """

    def shorten_path(match: re.Match[str]) -> str:
        quote = match["quote"] or ""
        return quote + short_path(match["quoted"] or match[0]) + quote

    return _PATHS.sub(shorten_path, plain(text))


def shorten(text: str, cells: int) -> str:
    """Return `text`, cut with an ellipsis if it is wider than `cells` (Latin letters count 1, Chinese 2)."""
    text = shown(text).strip()
    if width(text) <= cells:
        return text
    kept = ""
    for letter in text:
        if width(kept + letter) > cells - 1:
            break
        kept += letter
    return kept.rstrip() + "…"


def width(text: str) -> int:
    """Return how many Latin letters wide `text` is, roughly."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def percent(interval: IntervalLike | None) -> tuple[str, str]:
    """Return the estimate and its interval for people: "94.2 %" and "[93.1, 95.2]"."""
    if interval is None or not math.isfinite(interval.value):
        return "not measured", ""
    return f"{100 * interval.value:.1f} %", f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def change(metric: Metric) -> tuple[str, str]:
    """Return by how much a figure changed, and what to think of it.

    Returns:
        Percentage points with a sign ("−91.2 points"), and "better", "worse" or, where the intervals overlap
        so that nothing can be claimed, "intervals overlap"; both empty if the figure was not measured twice.
    """
    before, after = metric.before, metric.after
    if before is None or after is None or not (math.isfinite(before.value) and math.isfinite(after.value)):
        return "", ""
    points = round(100 * (after.value - before.value), 1)
    sign = "+" if points > 0 else "−" if points < 0 else "±"
    if before.low <= after.high and after.low <= before.high:
        opinion = "intervals overlap"
    else:
        opinion = "better" if (points > 0) == (metric.better == "higher") else "worse"
    return f"{sign}{abs(points):.1f} points", opinion
