"""One self-contained HTML page per run: no network, no scripts, nothing beside the file itself.

Three layers keep strangers' text harmless: every string is cleaned (`text.shown`) and escaped on its way into
the page, drawings are reduced to known shapes, and the page's own policy forbids scripts and every request.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

from unbackdoor import __version__
from unbackdoor.errors import InputError
from unbackdoor.files import write_bytes
from unbackdoor.report import html
from unbackdoor.report.charts import metric_chart
from unbackdoor.report.content import Chart, Gallery, Report, Section
from unbackdoor.report.html import digest, template
from unbackdoor.report.pictures import EncodedPicture, encode
from unbackdoor.report.svg import harmless_svg
from unbackdoor.report.text import change, percent, shown

_DIGEST = re.compile(r"(?:sha256:)?[0-9a-fA-F]{32,128}")

_ANSWERS = {
    "backdoored": "Backdoored",
    "no evidence": "No evidence found",
    "inconclusive": "Inconclusive",
    "repaired": "Repaired",
    "not repaired": "Not repaired",
    "info": "Information",
}

FEW_PICTURES = 3
"""A gallery of no more than this shows its pictures at twice the size."""

SMALL_SIDE = 144
"""Pictures up to this many pixels wide stand six in a row on a desk's screen, wider ones three."""


@dataclass(frozen=True, kw_only=True)
class _ShownPicture:
    caption: str
    png: EncodedPicture
    zoom: int


def render(report: Report) -> str:
    """Return the report as the text of an HTML page.

    Raises:
        InputError: a picture or a chart that cannot be shown: wrong shape, values out of range, no drawing.
    """
    environment = _environment()
    style = template("report.css")
    measured = any(percent(figure)[1] for metric in report.metrics for figure in (metric.before, metric.after))
    return environment.get_template("report.html.j2").render(
        report=report,
        answers=_ANSWERS,
        # Markup is what we made ourselves: it is put in as it is.
        style=Markup(style),
        style_digest=digest(style),
        metric_chart=metric_chart(report.metrics) if measured else None,
        galleries=[(gallery, _pictures(gallery)) for gallery in report.galleries],
        sections=[(section, _drawings(section)) for section in report.sections],
        version=__version__,
    )


def write_report(path: Path, report: Report) -> None:
    """Write the report's page to `path`, complete or not at all.

    Raises:
        InputError: as for `render`.
        OutputError: the file cannot be written.
    """
    write_bytes(path, render(report).encode())


def attempt_report(path: Path, page: Callable[[], Report]) -> str:
    """Make and write a report; return why it cannot be made, if so: hours of work are not lost for a drawing.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        write_report(path, page())
    except InputError as error:
        return str(error)
    return ""


def _environment() -> Environment:
    # Runs on everything that is put into the page, before it is escaped: no string can be forgotten.
    environment = html.environment(lambda value: shown(value) if type(value) is str else value)
    environment.filters.update(
        prose=_prose, drawing=lambda svg: Markup(harmless_svg(svg)), percent=percent, change=change
    )
    environment.tests.update(digest=lambda value: _DIGEST.fullmatch(value.strip()) is not None)
    return environment


def _prose(text: str) -> Markup:
    """Return a sentence with what stands between backticks as code."""
    parts = shown(text).split("`")
    if len(parts) % 2 == 0:
        return escape(shown(text))
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else escape(part) for number, part in enumerate(parts)
    )


def _drawings(section: Section) -> list[tuple[Chart | Gallery, dict[str, Any] | None]]:
    """Return what the part shows; a gallery with its pictures, a chart with None."""
    return [(one, _pictures(one) if isinstance(one, Gallery) else None) for one in section.drawings]


def _pictures(gallery: Gallery) -> dict[str, Any]:
    encoded = [encode(picture) for picture in gallery.pictures]
    widest = max((png.width for png in encoded), default=0)
    zoom = 2 if len(encoded) <= FEW_PICTURES and widest <= SMALL_SIDE else 1
    return {
        "layout": "few" if zoom == 2 else "small" if widest <= SMALL_SIDE else "large",
        "pictures": [
            _ShownPicture(caption=picture.caption, png=png, zoom=zoom)
            for picture, png in zip(gallery.pictures, encoded, strict=True)
        ],
    }
