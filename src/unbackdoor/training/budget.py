"""Making a schedule fit the minutes that the user allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from unbackdoor.training.runtime import Runtime

TRIAL_STEPS = 5
"""Steps that are timed; their median counts."""


def affordable(
    rounds: int,
    steps: int,
    step: Callable[[], object],
    runtime: Runtime,
    prepare: Callable[[], object] = lambda: None,
) -> int:
    """Return how many rounds fit the runtime's budget: all without a budget, and never fewer than one.

    What the timing itself takes is no longer there for rounds.

    Args:
        rounds: what the schedule asks for.
        steps: a round has.
        step: does one typical step on throw-away copies.
        runtime: its budget is in minutes.
        prepare: does what comes before the first step, on these copies; the run itself will do it once more.
    """
    if runtime.budget is None:
        return rounds
    began = time.perf_counter()
    prepare()
    preparation = time.perf_counter() - began
    seconds = []
    for _ in range(TRIAL_STEPS):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    left = runtime.budget * 60 - (time.perf_counter() - began) - preparation
    return max(1, int(min(rounds, left / (statistics.median(seconds) * steps))))
