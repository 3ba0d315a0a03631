"""Text that strangers wrote, made fit for a message or a terminal."""

from __future__ import annotations

import re
import unicodedata

# Terminal commands: CSI ("colour"), OSC ("window title", ended by BEL or ST), and two-character escapes.
_TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[@-Z\\-_]"
)
# Control (Cc), invisible formatting such as text reversal (Cf), halves of characters (Cs).
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})


def clean_text(text: str, limit: int = 200) -> str:
    """Return `text` on one line, without terminal commands and invisible characters, and not too long.

    Args:
        text: anything, such as a file's name or a tensor's name.
        limit: most characters to return, at least 2; longer text keeps its start and ends with an ellipsis.
    """
    # Cut first: the patterns below then work on a bounded string, whatever a file holds.
    text = " ".join(_TERMINAL.sub("", text[: 4 * limit]).split())
    text = "".join(letter for letter in text if unicodedata.category(letter) not in _HIDDEN)
    return text if len(text) <= limit else text[: limit - 1] + "…"
