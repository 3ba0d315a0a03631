"""Learning-rate schedules as pure functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from unbackdoor.errors import InputError

Schedule = Callable[[int, int], float]
"""From step (0-based) and total number of steps to the share of the peak learning rate, 0 to 1."""

WARM_UP = 0.25
"""Share of the steps in which one-cycle rises."""


def one_cycle(step: int, steps: int) -> float:
    """Rise linearly to the peak in the first quarter, then fall linearly to 0 (Smith & Topin, 2018)."""
    position = (step + 0.5) / steps
    return position / WARM_UP if position < WARM_UP else (1 - position) / (1 - WARM_UP)


def cosine(step: int, steps: float) -> float:
    """Fall from 1 to 0 along half a cosine (Loshchilov & Hutter, 2017)."""
    return (1 + math.cos(math.pi * step / steps)) / 2


def constant(step: int, steps: int) -> float:
    """Stay at the peak."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"one-cycle": one_cycle, "cosine": cosine, "constant": constant}


def schedule_named(name: str, planned: int) -> Schedule:
    """Return the schedule of that name.

    "cosine:100" is a cosine that swings with a half-period of 100 steps. In a run of other than the planned number of
    steps the half-period is the nearest with which it ends at 0, as where a budget's minutes run out is by chance: our
    rule.

    Args:
        name: of `SCHEDULES`, or "cosine:STEPS".
        planned: how many steps the whole run has.

    Raises:
        InputError: no such schedule.
    """
    if name in SCHEDULES:
        return SCHEDULES[name]
    swinging = re.fullmatch("cosine:([1-9][0-9]{0,8})", name)
    if swinging is None:
        raise InputError(f"unknown schedule {name!r}; known: {', '.join(SCHEDULES)}, cosine:STEPS")
    period = int(swinging[1])
    return lambda step, steps: cosine(step, period if steps == planned else steps / _falls(steps / period))


def _falls(halves: float) -> int:
    """Return the odd number nearest to so many half-periods: after an odd number of them the cosine is at 0."""
    return 2 * max(0, round((halves - 1) / 2)) + 1
