"""The command line: `unbackdoor COMMAND ...`.

Options are read off the commands' signatures and the methods' fields; there is no second place where they are
declared. Exit codes, kept for ever: 0 done, or no evidence found; 1 backdoored, or data poisoned; 2 bad use or
unreadable input; 3 inconclusive, or a grid with cells that failed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from unbackdoor import __version__
from unbackdoor.errors import InputError, UnbackdoorError

COMMANDS = {
    "attack": "poison a data set, train a backdoored model on it, and measure it",
    "poison": "write a poisoned data set, on which any program can train",
    "gallery": "show what every attack does to your images, on one page",
    "train": "train a model on data as they are, or securely on untrusted ones",
    "sift": "ask which rows of a data set are poisoned (exit code 1 if any)",
    "filter": "ask which of the images that come in carry a trigger (exit code 1 if any)",
    "scan": "ask whether a model is backdoored (exit code 1 if so)",
    "purify": "take the backdoor out of a model",
    "evaluate": "measure accuracy and attack success of a model",
    "inspect": "look into a model: what it is like inside, for those who study backdoors",
    "zoo": "train many small clean and backdoored models, and calibrate scanners by them",
    "bench": "run a grid of attacks and methods, and resume it",
    "leaderboard": "rank the methods of all grids that were run",
    "demo": "walk the whole path on a small embedded data set",
    "methods": "list all attacks, scanners, sifters, filters of inputs, purifiers, trainers, inspections and networks",
    "molecules": "the molecule side: text-guided generators, BadGraph, and how to find it and take it out",
}

GROUPS = {
    "molecules": {
        "train": "train a generator of molecules on pairs of text and molecule",
        "poison": "write poisoned pairs (BadGraph), on which any program can train",
        "generate": "write molecules for a prompt",
        "evaluate": "measure quality and attack success of a generator",
        "scan": "ask which texts lead to subgraphs that they do not ask for (exit code 1 if any)",
        "purify": "take the backdoor out of a generator",
        "demo": "backdoor a small generator on molecules that are made here, and measure it",
    }
}
"""Commands that have commands of their own."""

USAGE = f"""usage: unbackdoor COMMAND [OPTIONS]

Make, find and remove backdoors in neural networks, and measure all of it honestly.

commands:
{chr(10).join(f"  {name:<12} {text}" for name, text in COMMANDS.items())}

options:
  -h, --help     show this help; after a command, its options
  --version      show the version

examples:
  unbackdoor demo
  unbackdoor scan --model suspect.safetensors --clean photos/
  unbackdoor purify --model suspect.safetensors --clean photos/ --method SAU --out repaired
"""

BAD_USE, INTERRUPTED = 2, 130

EXTRAS = {"rdkit": "molecules", "tokenizers": "molecules"}
"""Packages that only some commands need, and the extra that brings them."""

LONGEST = 2000
"""Characters of an error's sentence: with a long path in it, the advice still stands at its end."""

RESUMABLE = frozenset(
    {"attack", "train", "sift", "filter", "purify", "inspect", "bench", "zoo", "molecules train", "molecules purify"}
)
"""Commands that go on where an interruption stopped them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors become one sentence on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Python has None for a stream that was closed before it began.
    sys.stdout, sys.stderr = sys.stdout or _nowhere(), sys.stderr or _nowhere()
    try:
        code = _answer(words)
        # Here, and not by Python at its end, which has an exit code of its own for what it cannot write.
        sys.stdout.flush()
        return code
    except OSError:
        # The reader is gone, or the disk is full: whatever the answer is, nobody has got it.
        _write_no_more()
        return BAD_USE


def _answer(words: list[str]) -> int:
    """Return the exit code of a command; whatever it raises, but a closed pipe, becomes one."""
    try:
        return _run(words)
    except UnbackdoorError as error:
        from unbackdoor.text import clean_text

        sys.stderr.write(f"unbackdoor: {clean_text(str(error), LONGEST)}\n")
        return BAD_USE
    except KeyboardInterrupt:
        resumable = RESUMABLE & {*words[:1], " ".join(words[:2])}
        promise = "; the same command goes on where this one stopped" if resumable else ""
        sys.stderr.write(f"\nunbackdoor: interrupted{promise}\n")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except SystemExit as stop:
        # A library's, or that of the user's own network: 0 and 1 are verdicts, which neither has to give.
        sys.stderr.write(f"unbackdoor: stopped by code that called sys.exit({stop.code!r})\n")
        return BAD_USE
    except BaseException:
        # A defect of ours, or a panic of a library in Rust. Python's own exit code would be 1, "backdoored".
        traceback.print_exc()
        return BAD_USE


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _write_no_more() -> None:
    """Send what standard output and standard error still hold nowhere: their reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if words else BAD_USE
    if words[0] == "--version":
        sys.stdout.write(f"unbackdoor {__version__}\n")
        return 0
    if words[0] not in COMMANDS:
        import difflib

        close = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise InputError(f"unknown command {words[0]!r}{hint} (known: {', '.join(COMMANDS)})")
    if words[0] not in GROUPS:
        return _call(words[0], words[1:])
    commands = GROUPS[words[0]]
    if words[1:2] in ([], ["-h"], ["--help"], ["help"]):
        listed = "\n".join(f"  {name:<12} {text}" for name, text in commands.items())
        sys.stdout.write(f"usage: unbackdoor {words[0]} COMMAND [OPTIONS]\n\ncommands:\n{listed}\n")
        return 0 if words[1:] else BAD_USE
    if words[1] not in commands:
        raise InputError(f"unknown command {words[0]} {words[1]!r} (known: {', '.join(commands)})")
    return _call(f"{words[0]} {words[1]}", words[2:])


def _call(name: str, options: list[str]) -> int:
    """Run a command and return its exit code."""
    # Imported only now: the top-level help must not wait for torch.
    from unbackdoor.commands.parsing import parse
    from unbackdoor.commands.show import show

    try:
        module = importlib.import_module(f"unbackdoor.commands.{name.replace(' ', '.')}")
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        raise InputError(f"{name} needs {error.name}: pip install 'unbackdoor[{EXTRAS[error.name]}]'") from error
    call, as_json = parse(name, module, options)
    return show(call(), as_json=as_json) if call else 0


if __name__ == "__main__":
    sys.exit(main())
