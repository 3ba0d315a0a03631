"""Showing an outcome: a table for people, JSON for programs."""

from __future__ import annotations

import json
import sys

from unbackdoor.commands.outcome import Outcome
from unbackdoor.files import without_nan
from unbackdoor.text import clean_text

LONGEST = 2000
"""Characters of a value or a sentence: reasons and paths can be long, and their ends matter."""


def show(outcome: Outcome, *, as_json: bool) -> int:
    """Write the outcome to standard output and return its exit code."""
    if as_json:
        page = None if outcome.page is None else str(outcome.page)
        result = without_nan({**outcome.result, "page": page, "exit_code": outcome.code})
        sys.stdout.write(json.dumps(result, allow_nan=False) + "\n")
        return outcome.code
    from rich.table import Table
    from rich.text import Text

    from unbackdoor.commands.console import Console

    console = Console(file=sys.stdout, soft_wrap=not sys.stdout.isatty())
    table = Table(title=Text(clean_text(outcome.title)), show_header=False, title_justify="left", title_style="bold")
    for name, value in outcome.rows:
        table.add_row(Text(clean_text(name), style="dim"), Text(clean_text(value, LONGEST)))
    console.print(table)
    if outcome.sentence:
        console.print(Text(clean_text(outcome.sentence, LONGEST)))
    if outcome.page is not None:
        # Last, and on a line of its own, so that it can be clicked or piped.
        console.print(Text(str(outcome.page)), soft_wrap=True)
    return outcome.code
