"""A method's options as values: from files to methods, and from methods to records and keys."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import InputError
from unbackdoor.files import read_bytes, sha256
from unbackdoor.models.limits import MAX_FILE_BYTES
from unbackdoor.text import clean_text


def with_options(
    method: Callable[..., Any], options: Mapping[str, Any], skip: frozenset[str] = frozenset()
) -> partial[Any]:
    """Return a method with its options bound, each checked against its type.

    Args:
        method: a class or a function whose parameters have types.
        options: JSON values by name, as a file holds them.
        skip: parameters that are not the user's.

    Raises:
        InputError: an unknown option, or a value of another type.
    """
    name = getattr(method, "__name__", "method")
    known = [parameter for parameter in inspect.signature(method).parameters if parameter not in skip]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known) or 'none'}"
            raise InputError(f"{name} has no option {clean_text(repr(option))}; {hint}")
    # A dataclass's fields may come from several modules; its constructor knows the names of one of them only.
    told = method.__init__ if inspect.isclass(method) and not dataclasses.is_dataclass(method) else method
    hints = get_type_hints(told)
    parser = ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(method, skip=set(skip), fail_untyped=True)
    for option, value in options.items():
        try:
            # One by one: the parser's own message does not always say which it is about.
            parser.parse_object({option: value}, defaults=False)
        except Exception as error:
            reason = clean_text(" ".join(str(error).split()).split(": ", 1)[-1])
            raise InputError(f"{name}: option {option} cannot be {clean_text(repr(value))} ({reason})") from error
        # The parser takes None for everything.
        if value is None and not _may_be_none(hints.get(option)):
            raise InputError(f"{name}: option {option} cannot be None; give it a value, or leave the option out")
    values = parser.instantiate(parser.parse_object(dict(options))).as_dict()
    return partial(method, **{option: values[option] for option in options})


def _may_be_none(hint: Any) -> bool:
    return hint is Any or hint is None or type(None) in get_args(hint)


def options_of(method: Any) -> dict[str, Any]:
    """Return the name and the options of a method as JSON values; of a file, its name without its folder."""
    options = {name: _plain(value) for name, value in dataclasses.asdict(method).items()}
    return {"name": type(method).__name__, **options}


def revision_of(method: Any) -> dict[str, int]:
    """Return a method's revision under its name, for what results are known by; nothing where it is 0.

    So the keys of methods that never changed stay what they are.
    """
    return {"revision": method.revision} if method.revision else {}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value


def short_name(method: Any, without: frozenset[str] = frozenset()) -> str:
    """Return the name of a method with those options that are not its defaults.

    Args:
        method: an instance of a method, or a class or function with options bound.
        without: options that are told elsewhere.
    """
    options = bound_options(method) if isinstance(method, partial) else options_of(method)
    name = options.pop("name")
    made_by = method.func if isinstance(method, partial) else type(method)
    defaults = {option: parameter.default for option, parameter in inspect.signature(made_by).parameters.items()}
    told = [
        f"{option}={value}"
        for option, value in options.items()
        if option not in without and value != _plain(defaults[option])
    ]
    return " ".join([name, *told])


def bound_options(method: partial[Any]) -> dict[str, Any]:
    """Return the name and the options of a class or function with options bound, the defaults among them."""
    parameters = inspect.signature(method.func).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not inspect.Parameter.empty}
    return {
        "name": method.func.__name__,
        **{name: _plain(value) for name, value in defaults.items()},
        **method.keywords,
    }


def file_digest(option: str, path: Path) -> str:
    """Return the SHA-256 of the file that an option names; of a folder, that of the list of its files.

    Raises:
        InputError: it cannot be read.
    """

    def digest(one: Path) -> str:
        return sha256(read_bytes(one, MAX_FILE_BYTES))

    try:
        if not path.is_dir():
            return digest(path)
        files = [one for one in sorted(path.iterdir()) if one.is_file()]
        return sha256("\n".join(f"{digest(one)}  {one.name}" for one in files).encode())
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({reason_of(error)}); the option {option} takes a file or folder that is there"
        ) from error


def files_of(method: Any) -> dict[str, str]:
    """Return the SHA-256 of the files that a method's options name, by option and name; of a folder, of all in it.

    Raises:
        InputError: one cannot be read.
    """
    files = {name: value for name, value in vars(method).items() if isinstance(value, Path)}
    return {f"{name} {path.name}": file_digest(name, path) for name, path in files.items()}
