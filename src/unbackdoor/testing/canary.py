"""A defender's data that sings when a method reaches for what no defender has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from unbackdoor.data import DefenderData
from unbackdoor.errors import OracleError


@dataclass(frozen=True, kw_only=True, eq=False)
class CanaryData(DefenderData):
    """`DefenderData` on which everything but `clean` and `untrusted` raises.

    Raises:
        OracleError: on access to test data, trigger, target, poison mask, or anything else.
    """

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            # Python itself asks for optional protocols, such as __deepcopy__.
            raise AttributeError(name)
        raise OracleError(f"a defence reached for {name!r}, which no defender has")
