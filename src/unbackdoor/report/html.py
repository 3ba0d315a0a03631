"""What every page is made with: its templates, and the digests by which its policy knows our own styles and scripts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(finalize: Callable[[Any], Any] | None = None) -> Environment:
    """Return the environment of our templates, which escapes all that is put in.

    Args:
        finalize: applied to everything that is put into the page, before it is escaped.
    """
    return Environment(
        loader=PackageLoader("unbackdoor.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )


def template(name: str) -> str:
    """Return the text of a file beside our templates."""
    return (resources.files(__package__) / "templates" / name).read_text("utf-8")


def digest(text: str) -> Markup:
    """Return the source in a page's policy that allows `text`."""
    return Markup(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'")
