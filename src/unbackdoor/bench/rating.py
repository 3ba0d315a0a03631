"""DER of a cell, from the shares before and after a defence as cells keep them: by name, with the ends of intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unbackdoor.evaluate import Ends, effectiveness, effectiveness_interval


def rating(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Return `der`, and `der_low` and `der_high` where all four shares have intervals (see `effectiveness_interval`).

    Args:
        before: at least `acc` and `asr` of the model without a defence; with intervals `acc_low`, `acc_high` and so on.
        after: the same of the model with it.
    """
    found = {"der": effectiveness(before["acc"] - after["acc"], before["asr"] - after["asr"])}
    ends = [_ends(shares, name) for name in ("acc", "asr") for shares in (before, after)]
    known = [one for one in ends if one is not None]
    if len(known) == len(ends):
        found["der_low"], found["der_high"] = effectiveness_interval(*known)
    return found


def _ends(shares: Mapping[str, Any], name: str) -> Ends | None:
    names = (name, f"{name}_low", f"{name}_high")
    return (shares[names[0]], shares[names[1]], shares[names[2]]) if set(names) <= set(shares) else None
