"""What was found before a repair: kept on disk, since a scan of other length or threads finds otherwise."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unbackdoor.data import DefenderData
from unbackdoor.models import Network
from unbackdoor.scan import Finding
from unbackdoor.training import Runtime
from unbackdoor.training.resume import Resume, hash_state


def kept_scan(
    find: Callable[[Network, DefenderData, Runtime], dict[str, Any]],
    method: object,
    model: Network,
    data: DefenderData,
    runtime: Runtime,
    path: Path | None,
) -> dict[str, Any]:
    """Return what `find` returns for a model, or what it returned in an interrupted run.

    Args:
        find: returns tensors and plain values.
        method: the purifier, whose options decide what is found.
        model: the suspect.
        data: what the defender has.
        runtime: device, precision, seed and budget of what `find` does.
        path: file of an interrupted run; None keeps nothing.
    """
    saved = None
    if path:
        words = (method, runtime.seed, runtime.precision, runtime.budget, data.need_clean("a scan").digest())
        digest = hashlib.sha256(repr(words).encode())
        hash_state(digest, model)
        saved = Resume(path, digest.hexdigest())
    state = saved.read() if saved else None
    if state is None:
        state = find(model, data, runtime)
        if saved:
            saved.write(state)
    return state


def scan_note(done: str, scanner: str, finding: Finding) -> str:
    """Return what a report says of a scan before a repair; an inconclusive finding suspects nobody.

    Args:
        done: what follows from a suspicion, such as "Retrained on triggers".
        scanner: its name.
        finding: its answer.
    """
    cut = cut_short(finding.shortened)
    if finding.suspected:
        classes = ", ".join(str(number) for number in finding.suspected)
        return f"{done} for class {classes}: {finding.reason}.{cut}"
    verdict = "is inconclusive" if finding.backdoored is None else "suspects no class"
    return f"The model is unchanged, since {scanner} {verdict}: {finding.reason}.{cut}"


def cut_short(shortened: bool) -> str:
    """Return what a note adds where a budget cut a search short; otherwise nothing."""
    return " The search was cut short by the budget: its numbers are not those of the full one." if shortened else ""
