"""YAML with line numbers, so that whatever is wrong in a file can be shown where it stands.

Values are read as `yaml.safe_load` reads them, and nothing else: no tags that make objects, no merges, no name twice.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError
from unbackdoor.files import read_bytes
from unbackdoor.text import clean_text

MAX_BITS = 10_000
"""Of a whole number: Python writes out no number of many more."""

MOST_BYTES = 1 << 20
DEEPEST = 50
COLLECTIONS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")
MOST_NODES = 100_000
"""Values in a file, those counted again that an alias repeats."""


@dataclass(frozen=True, eq=False)
class Located:
    """A value and where it stands.

    Attributes:
        value: a scalar, a list of `Located`, or a dict from names to `Located`.
        line: from 1.
        path: of the file.
    """

    value: Any
    line: int
    path: Path

    def error(self, what: str) -> InputError:
        """Return an error that names file and line."""
        return InputError(f"{self.path}, line {self.line}: {what}")

    def items(self, known: Iterable[str] | None = None) -> dict[str, Located]:
        """Return the named values.

        Args:
            known: the names that may occur; None: any.

        Raises:
            InputError: this is no mapping, or a name is unknown.
        """
        if not isinstance(self.value, dict):
            raise self.error(f"expected options by name, such as 'seeds: [0]'; found {_shown(self.value)}")
        for name, found in self.value.items():
            if known is not None and name not in set(known):
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
                raise found.error(f"unknown name {clean_text(name)!r}; {hint}")
        return self.value

    def elements(self) -> list[Located]:
        """Return the values of a list; a single value is a list of one.

        Raises:
            InputError: the list is empty.
        """
        found: list[Located] = self.value if isinstance(self.value, list) else [self]
        if not found:
            raise self.error("the list is empty; leave the name out, or give it at least one value")
        return found

    def plain(self) -> Any:
        """Return the value without its lines."""
        if isinstance(self.value, dict):
            return {name: found.plain() for name, found in self.value.items()}
        if isinstance(self.value, list):
            return [found.plain() for found in self.value]
        return self.value

    def text(self) -> str:
        """Return the value, which must be text.

        Raises:
            InputError: it is not.
        """
        if not isinstance(self.value, str):
            raise self.error(f"expected text, found {_shown(self.value)}")
        return self.value

    def number(self, lowest: float, *, whole: bool = False) -> float | int:
        """Return the value, which must be a number of at least `lowest`.

        Raises:
            InputError: it is not.
        """
        value = self.value
        # To YAML 1.1, 1e-2 is text.
        if isinstance(value, str) and not whole:
            with contextlib.suppress(ValueError):
                value = float(value)
        # And true is an int to Python.
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not (fits and lowest <= value <= sys.float_info.max):
            what = "whole number" if whole else "number"
            raise self.error(f"expected a {what} of at least {lowest:g}, found {_shown(self.value)}")
        return value  # type: ignore[no-any-return]


def read_located(path: Path) -> Located:
    """Read a YAML file.

    Raises:
        InputError: it cannot be read, is not YAML, or is too large.
    """
    try:
        node = yaml.compose(read_bytes(path, MOST_BYTES).decode(), Loader=yaml.SafeLoader)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({reason_of(error)}); name a YAML file") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "it cannot be read"
        raise InputError(f"{path}{where}: this is not YAML ({what}); correct it") from error
    if node is None:
        raise InputError(f"{path} is empty")
    return _located(node, path, iter(range(MOST_NODES)), ())


def _located(node: yaml.Node, path: Path, budget: Iterator[int], above: tuple[yaml.Node, ...]) -> Located:
    line = node.start_mark.line + 1
    here = Located(None, line, path)
    if next(budget, None) is None or node in above:
        raise here.error("the file repeats itself through aliases (&, *) too often; write the values out")
    if len(above) > DEEPEST:
        raise here.error(f"values stand in one another more than {DEEPEST} deep; none has to")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in COLLECTIONS:
        raise here.error(f"cannot understand the tag {clean_text(node.tag)}; leave it out")
    inside = (*above, node)
    if isinstance(node, yaml.SequenceNode):
        return Located([_located(child, path, budget, inside) for child in node.value], line, path)
    if isinstance(node, yaml.MappingNode):
        named: dict[str, Located] = {}
        for key, child in node.value:
            name = _scalar(key, path)
            if not isinstance(name, str):
                raise Located(None, key.start_mark.line + 1, path).error(f"{_shown(name)} is no name")
            found = _located(child, path, budget, inside)
            if name in named:
                raise Located(None, key.start_mark.line + 1, path).error(
                    f"{clean_text(name)!r} stands twice, the first time in line {named[name].line}; keep one"
                )
            named[name] = Located(found.value, key.start_mark.line + 1, path)
        return Located(named, line, path)
    return Located(_scalar(node, path), line, path)


def _scalar(node: yaml.Node, path: Path) -> Any:
    """Return the value of a scalar.

    Raises:
        InputError: it is none, or has a tag of a kind that is not read here.
    """
    loader = yaml.SafeLoader("")
    try:
        if isinstance(node, yaml.ScalarNode):
            value = loader.construct_object(node, deep=True)
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise ValueError(f"a whole number of more than {MAX_BITS} bits")
            return value
        raise ValueError("a name must be plain text")
    # What PyYAML raises at a scalar that its tag does not fit.
    except (yaml.YAMLError, ValueError, OverflowError, LookupError, AttributeError, TypeError) as error:
        line = node.start_mark.line + 1
        raise InputError(f"{path}, line {line}: cannot understand this value ({reason_of(error)})") from error
    finally:
        loader.dispose()


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "options by name"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else repr(value)[:80]
