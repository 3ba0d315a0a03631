"""Facts that every run reports: the versions it ran with and the options of its methods."""

from __future__ import annotations

import platform
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol

import torch

from unbackdoor import __version__
from unbackdoor.report.content import Fact


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def version_facts() -> list[Fact]:
    """Return the versions of unbackdoor, Python and torch, and the number of threads in use."""
    return [
        Fact(name="unbackdoor", value=__version__),
        Fact(name="Python", value=platform.python_version()),
        Fact(name="torch", value=torch.__version__),
        Fact(name="Threads", value=str(torch.get_num_threads())),
    ]


def option_facts(method: _Dataclass) -> list[Fact]:
    """Return each option of a method (a dataclass) with the value it ran with."""
    return [Fact(name=option.name, value=str(getattr(method, option.name))) for option in fields(method)]
