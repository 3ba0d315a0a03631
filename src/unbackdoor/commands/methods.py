"""List all methods: attacks, scanners, sifters, filters of inputs, purifiers, trainers, inspections, networks."""

from __future__ import annotations

from typing import Any

from unbackdoor.attacks import ATTACKS
from unbackdoor.commands.outcome import Outcome
from unbackdoor.inspect import INSPECTIONS
from unbackdoor.models import NETWORKS
from unbackdoor.purify import PURIFIERS
from unbackdoor.registry import Registry
from unbackdoor.scan import SCANNERS
from unbackdoor.secure import TRAINERS
from unbackdoor.sift import INPUT_FILTERS, SIFTERS

RUNTIME = False
REGISTRIES: dict[str, Registry[Any]] = {
    "attack": ATTACKS,
    "scanner": SCANNERS,
    "sifter": SIFTERS,
    "input_filter": INPUT_FILTERS,
    "purifier": PURIFIERS,
    "trainer": TRAINERS,
    "inspection": INSPECTIONS,
    "network": NETWORKS,
}


def run() -> Outcome:
    """List the methods."""
    found = {kind: {name: _line(registry[name]) for name in registry} for kind, registry in REGISTRIES.items()}
    rows = [(f"{kind} {name}", line) for kind, members in found.items() for name, line in members.items()]
    return Outcome(title="methods", rows=rows, result=found)


def _line(method: type) -> str:
    """Return the first line of a docstring."""
    return (method.__doc__ or "").strip().split("\n")[0]
