"""Methods by name: what a folder ships, and what third-party packages add through entry points."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar, overload

from unbackdoor.errors import InputError
from unbackdoor.text import clean_text

logger = logging.getLogger(__name__)

T = TypeVar("T")
D = TypeVar("D")


class Registry(Mapping[str, type[T]], Generic[T]):
    """A read-only mapping from a method's name to its class.

    Args:
        kind: what the entries are, in one word, for messages ("attack").
        *members: the classes shipped here; a class is known by its own name.
        elsewhere: names of what users may look for here and find elsewhere, and where, for messages.

    A third-party package adds a class with an entry point in the group `unbackdoor.<kind>`; it too is known by its own
    name, whatever the entry point's. One that cannot be loaded is left out with a warning.
    """

    def __init__(self, kind: str, *members: type[T], elsewhere: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.elsewhere = elsewhere or {}
        self._members = {member.__name__: member for member in members}
        self._complete = False

    def _all(self) -> dict[str, type[T]]:
        if not self._complete:
            for entry in entry_points(group=f"unbackdoor.{self.kind}"):
                try:
                    member = entry.load()
                    self._members.setdefault(member.__name__, member)
                # A stranger's code: whatever it raises, the other methods can be used.
                except Exception as error:
                    logger.warning(
                        "the %s %s is left out, as it cannot be loaded: %s",
                        self.kind,
                        entry.name,
                        clean_text(str(error)),
                    )
            self._complete = True
        return self._members

    def __getitem__(self, name: str) -> type[T]:
        members = self._all()
        if name not in members:
            if name in self.elsewhere:
                raise InputError(f"{name!r} is no {self.kind}: {self.elsewhere[name]}")
            close = difflib.get_close_matches(name, members, n=1, cutoff=0.4)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise InputError(f"unknown {self.kind} {name!r}{hint} (known: {', '.join(sorted(members))})")
        return members[name]

    @overload
    def get(self, name: str, /) -> type[T] | None: ...
    @overload
    def get(self, name: str, default: type[T] | D, /) -> type[T] | D: ...
    def get(self, name: str, default: object = None, /) -> object:
        """Return the class of that name, or the default (a mapping's own `get` knows no error but KeyError)."""
        return self._all().get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())
