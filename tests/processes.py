"""Processes and those that they started, as Linux tells them."""

from __future__ import annotations

from pathlib import Path


def children_of(parent: int) -> set[int]:
    """Return the processes that a process started, and those that these started."""
    status = [file.read_text().rsplit(")", 1) for file in Path("/proc").glob("[0-9]*/stat")]
    parents = {int(head.split()[0]): int(rest.split()[1]) for head, rest in status}
    found, new = set(), {parent}
    while new:
        new = {child for child, above in parents.items() if above in new} - found
        found |= new
    return found


def works(process: int) -> bool:
    """Return whether a process is still there and is one of Ray's that could do what it was given."""
    try:
        name = Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return False
    return bool(name) and b"agent" not in name.lower()
