"""From words on the command line (and a YAML file) to a call of a command's `run`.

A parameter of `run` that names a method, such as `attack`, is chosen by name from a registry: `--attack BadNets
--attack.poison_rate 0.05`. Code of the user's, `module:function`, can be named as a network, and only on the command
line itself: nothing that a file says is ever imported.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from unbackdoor.commands.outcome import Outcome
from unbackdoor.errors import InputError
from unbackdoor.located import read_located
from unbackdoor.models import NETWORKS
from unbackdoor.models.build import is_code
from unbackdoor.registry import Registry
from unbackdoor.training import Runtime, UserNetwork


@dataclass(frozen=True)
class Choice:
    """A parameter that is one of the methods of a registry.

    Attributes:
        registry: the methods.
        default: the name of the one that is taken if none is named; None: none is then, and `run` gets None.
        skip: parameters of the methods that are not the user's.
        partial: whether `run` gets the class with its options bound, instead of an instance. Then it may be a function
            of the user's too, which has no options.
        leading: whether it is named by the first word after the command too, in small letters: `inspect weights`.
    """

    registry: Registry[Any]
    default: str | None
    skip: frozenset[str] = frozenset()
    partial: bool = False
    leading: bool = False


NETWORK = Choice(NETWORKS, "PreActResNet18", skip=frozenset({"channels", "classes"}), partial=True)
"""The option --model of the commands that train."""
OWN_NETWORK = replace(NETWORK, default=None)
"""The same, of the commands that have networks of their own if none is named."""


def parse(name: str, module: ModuleType, words: list[str]) -> tuple[Callable[[], Outcome] | None, bool]:
    """Return the call that the words ask for, and whether its outcome is to be shown as JSON.

    Args:
        name: of the command.
        module: with `run` and, where it has methods to choose, `CHOICES`.
        words: the options.

    Returns:
        None instead of a call if the words asked for help, which has been shown.

    Raises:
        InputError: an option that is unknown, missing or cannot be understood.
    """
    choices: dict[str, Choice] = getattr(module, "CHOICES", {})
    wants_runtime: bool = getattr(module, "RUNTIME", True)
    typed = _with_leading([_underscored(word) for word in words], choices)
    words = _with_config(typed, choices)
    chosen, words = _take_choices(_with_values(words, module), choices, typed)
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = _parser(name, module, choices, chosen, wants_runtime)
    values = _parse(parser, words)
    if values is None:
        return None, False
    _refuse_code_of_files(values.get("arch"), typed)
    as_json = values.pop("json")
    values.pop("config", None)
    arguments = parser.instantiate(values).as_dict()
    for key, choice in choices.items():
        named = chosen[key]
        if named is None:
            arguments[key] = None
            continue
        if is_code(named):
            arguments[key] = UserNetwork.named(named)
            continue
        method: Callable[..., Any] = choice.registry[named]
        options = arguments.pop(key, {})
        arguments[key] = partial(method, **options) if choice.partial else method(**options)
    if wants_runtime:
        from unbackdoor.commands.progress import RichProgress

        fields = {field: arguments.pop(field) for field in _RUNTIME_FIELDS if field not in _without(module)}
        arguments["runtime"] = Runtime(**fields, progress=RichProgress())
    return partial(module.run, **arguments), as_json


_RUNTIME_FIELDS = ("device", "precision", "threads", "seed", "budget")


def _without(module: ModuleType) -> frozenset[str]:
    """Return the options of the runtime that a command does not take, as they would do nothing."""
    without: frozenset[str] = getattr(module, "WITHOUT", frozenset())
    return without


def _parser(
    name: str, module: ModuleType, choices: dict[str, Choice], chosen: dict[str, str | None], wants_runtime: bool
) -> ArgumentParser:
    """Return a parser for this command with these methods chosen."""
    notes = [
        f"  --{key} NAME{' (or first of all, in small letters)' if choice.leading else ''}:"
        f" {', '.join(sorted(choice.registry))}{', or module:function' if choice.partial else ''}"
        f" (now: {chosen[key] or 'none'})"
        for key, choice in choices.items()
    ]
    parser = ArgumentParser(
        prog=f"unbackdoor {name}",
        allow_abbrev=False,
        description="\n".join([(module.__doc__ or "").strip(), *(["", "methods:", *notes] if notes else [])]),
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", help="YAML file with these options; options given here win over it")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, for programs")
    positional: bool = getattr(module, "POSITIONAL", False)
    parser.add_function_arguments(module.run, as_positional=positional, skip={*choices, "runtime"}, fail_untyped=True)
    if wants_runtime:
        parser.add_class_arguments(Runtime, skip={"progress", *_without(module)}, fail_untyped=True)
    for key, choice in choices.items():
        named = chosen[key]
        if named is not None and not is_code(named):
            parser.add_class_arguments(
                choice.registry[named], key, skip=set(choice.skip), instantiate=False, fail_untyped=True
            )
    return parser


def _parse(parser: ArgumentParser, words: list[str]) -> Any:
    """Return the parsed options, or None after help was shown."""
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            return parser.parse_args(words)
        except SystemExit as stop:
            if stop.code in (0, None):
                return None
            raise InputError(f"{parser.prog}: cannot understand {' '.join(words)!r}; see --help") from stop
        except Exception as error:
            raise InputError(_explain(parser, words, str(error))) from error


def _explain(parser: ArgumentParser, words: list[str], message: str) -> str:
    """Return one sentence for what the parser said in several lines."""
    known = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        option = word.split("=")[0]
        if option.startswith("--") and option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "see --help"
            return f"unknown option {option} of {parser.prog}; {hint}"
    sentence = " ".join(message.split())
    return f"{parser.prog}: {sentence}; see --help"


def _with_config(words: list[str], choices: dict[str, Choice]) -> list[str]:
    """Return the words with those of a YAML file put before them, so that the words win."""
    path, rest = _take(words, "--config")
    if path is None:
        return rest
    content = read_located(Path(path)).plain()
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold options by name, such as 'seed: 1'")
    return [*(_underscored(word) for word in _flatten("", content, choices, path)), *rest]


def _flatten(prefix: str, content: dict[Any, Any], choices: dict[str, Choice], path: str) -> list[str]:
    """Return nested options as words; a method may stand as `attack: BadNets` or with options under `name`."""
    words: list[str] = []
    for key, value in content.items():
        if not isinstance(key, str) or not key.replace("_", "a").replace("-", "a").isalnum():
            raise InputError(f"{path}: {key!r} is no option's name")
        option = f"--{prefix}{key}"
        if isinstance(value, dict):
            inner = dict(value)
            if not prefix and key in choices and "name" in inner:
                words.append(f"{option}={inner.pop('name')}")
            words += _flatten(f"{prefix}{key}.", inner, choices, path)
        elif key == "json" and not prefix:
            words += [option] if value else []
        else:
            words.append(f"{option}={value if isinstance(value, str) else json.dumps(value, default=str)}")
    return words


def _take_choices(
    words: list[str], choices: dict[str, Choice], typed: list[str]
) -> tuple[dict[str, str | None], list[str]]:
    """Return the chosen method of each choice, and the words without them."""
    chosen: dict[str, str | None] = {}
    for key, choice in choices.items():
        named, words = _take(words, f"--{key}")
        chosen[key] = taken = choice.default if named is None else named
        if taken is not None and choice.partial and is_code(taken):
            _refuse_code_of_files(named, typed)
        elif taken is not None:
            choice.registry[taken]  # an unknown name is an InputError with a hint
        elif orphan := next((word.partition("=")[0] for word in words if word.startswith(f"--{key}.")), None):
            raise InputError(f"{orphan} is an option of a method, and none is named; name it with --{key}")
    return chosen, words


def _with_leading(words: list[str], choices: dict[str, Choice]) -> list[str]:
    """Return the words with a leading name as the option that it stands for: `weights` is `--inspection Weights`."""
    for key, choice in choices.items():
        if choice.leading and words and not words[0].startswith("-"):
            names = {name.lower(): name for name in choice.registry}
            return [f"--{key}", names.get(words[0].lower(), words[0]), *words[1:]]
    return words


def _refuse_code_of_files(named: str | None, typed: list[str]) -> None:
    """Raise InputError if this names code and the user did not type just that on the command line."""
    if named is not None and is_code(named) and not any(word == named or word.endswith(f"={named}") for word in typed):
        raise InputError(f"{named} is code, which a configuration file cannot name; name it on the command line")


def _with_values(words: list[str], module: ModuleType) -> list[str]:
    """Return the words with `=true` after switches that stand alone: `--plan` is `--plan true`."""
    parameters = inspect.signature(module.run).parameters.values()
    switches = {f"--{parameter.name}" for parameter in parameters if parameter.annotation in (bool, "bool")}
    return [
        f"{word}=true" if word in switches and after not in ("true", "false") else word
        for word, after in itertools.zip_longest(words, words[1:], fillvalue="")
    ]


def _underscored(word: str) -> str:
    """Return an option with its dashes as underscores, so that --clean-size is --clean_size; values stay."""
    if not word.startswith("--"):
        return word
    option, equals, value = word[2:].partition("=")
    return f"--{option.replace('-', '_')}{equals}{value}"


def _take(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """Return the last value of an option, and the words without it."""
    value, rest, position = None, [], 0
    while position < len(words):
        word = words[position]
        if word == option:
            if position + 1 == len(words) or words[position + 1].startswith("--"):
                raise InputError(f"{option} needs a value")
            value, position = words[position + 1], position + 1
        elif word.startswith(f"{option}="):
            value = word[len(option) + 1 :]
        else:
            rest.append(word)
        position += 1
    return value, rest
