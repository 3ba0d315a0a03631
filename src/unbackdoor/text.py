"""Text that strangers wrote, made fit for a message, a terminal or a page."""

from __future__ import annotations

import re

# Terminal commands: CSI ("colour"), OSC ("window title", ended by BEL or ST), and two-character escapes.
TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[@-Z\\-_]"
)

# All white space but the plain one, which may stand alone at either end.
_BREAKS = re.compile(r"[^\S ]+")


def plain(text: str) -> str:
    """Return `text` on one line, without terminal commands and without characters that cannot be seen."""
    text = _BREAKS.sub(" ", TERMINAL.sub("", text))
    return "".join(letter for letter in text if letter.isprintable())


def in_utf8(text: str) -> str:
    """Return `text` with what UTF-8 cannot write as an escape: names of folders may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode()


def clean_text(text: str, limit: int = 200) -> str:
    """Return `text` as `plain` does, single spaces between its words, cut to length.

    Args:
        text: anything, such as a file's name or a tensor's name.
        limit: most characters to return, at least 2; longer text keeps its start and ends with an ellipsis.
    """
    # Cut first: the patterns then work on a bounded string, whatever a file holds.
    text = " ".join(plain(text[: 4 * limit]).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
