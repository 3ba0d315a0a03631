"""What several commands share: opening models and data, and writing results."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.attacks.preparation import STATES
from unbackdoor.data import DefenderData, ImageSet, clean_rows, read_images
from unbackdoor.errors import CheckpointError, OutputError, UnknownClassesError
from unbackdoor.evaluate import Evaluation, Proportion
from unbackdoor.files import unlock, write_json
from unbackdoor.folder import ATTACK, LOCK, MODEL, RESUME, RUN, WORK
from unbackdoor.models import LoadedModel, Network, load_model, save_model
from unbackdoor.models.build import is_code
from unbackdoor.report import Fact
from unbackdoor.training import Runtime, check_fits
from unbackdoor.training.resume import states


def open_model(model: Path, arch: str | None, source: str, split: str) -> tuple[LoadedModel, ImageSet]:
    """Read a model and the images for it.

    Where a network of the user's own has a file that does not say the classes, the data say classes and image size.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        arch: see `load_model`.
        source: see `read_images`.
        split: see `read_images`.

    Raises:
        UnbackdoorError: either cannot be read, or they do not fit each other.
    """
    try:
        loaded = load_model(model, arch=arch)
    except UnknownClassesError:
        images = read_images(source, split)
        loaded = load_model(model, arch=arch, classes=images.class_names, image_shape=images.shape)
        note = f"the file does not tell classes and size of images: taken from {images.name}"
        return dataclasses.replace(loaded, notes=(*loaded.notes, note)), images
    images = read_images(source, split)
    check_fits(loaded.network, images)
    return loaded, images


def open_beside(path: Path, arch: str | None) -> LoadedModel:
    """Read a model that is compared with another; its code, if it has some, is that of `arch`.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return load_model(path)
    except CheckpointError:
        if arch is None or not is_code(arch):
            raise
        return load_model(path, arch=arch)


def open_attack(path: Path, model: LoadedModel) -> SavedAttack:
    """Read the attack that a model is looked at with.

    Args:
        path: folder that `unbackdoor attack` made, or an attack's file.
        model: the model.

    Raises:
        InputError: there is none, or it was made for other images or classes than the model.
    """
    saved = load_attack(path / ATTACK if path.is_dir() else path)
    saved.check_fits(model.network.description.image_shape, model.network.classes, path)
    return saved


def open_for_defense(
    model: Path, arch: str | None, clean: str | None, size: int, runtime: Runtime, untrusted: str | None = None
) -> tuple[LoadedModel, DefenderData, list[int]]:
    """Read a model and what a defender has: clean samples, the training data as found, both, or nothing.

    Args:
        model: checkpoint file, or a Hugging Face folder.
        arch: see `load_model`.
        clean: source of clean samples, of whose training images `size` are drawn class-balanced by the seed.
        size: clean samples wanted.
        runtime: has the seed.
        untrusted: source of the training data.

    Returns:
        The model, the data, and the rows of clean samples drawn.
    """
    # Never the part that `evaluate` reads from the same source.
    part = "train"
    if clean is None:
        if untrusted is None:
            return load_model(model, arch=arch), DefenderData(), []
        loaded, images = open_model(model, arch, untrusted, part)
        return loaded, DefenderData(untrusted=images), []
    loaded, images = open_model(model, arch, clean, part)
    rows = clean_rows(images, size, runtime.seed)
    found = read_images(untrusted, part) if untrusted else None
    check_fits(loaded.network, found)
    return loaded, DefenderData(clean=images.subset(rows), untrusted=found), rows.tolist()


@contextlib.contextmanager
def new_folder(out: Path, command: str) -> Iterator[Path]:
    """Yield `out` as a folder for a new model; no other process may use it meanwhile.

    Raises:
        OutputError: it holds a finished result or another command's, is in use, or cannot be made.
    """
    _refuse_finished(out)
    _refuse_others(out, command)
    lock = _locked(writable_folder(out))
    try:
        # Whoever had it until now may have finished.
        _refuse_finished(out)
        yield out
    finally:
        unlock(lock)


def _refuse_finished(out: Path) -> None:
    if (out / MODEL).exists():
        raise OutputError(f"{out} holds a finished result; choose another --out, or remove it first")


@contextlib.contextmanager
def report_folder(out: Path, command: str) -> Iterator[Path]:
    """Yield `out` as a folder for a result of a command that replaces its own earlier ones; no other process may use it
    meanwhile.

    Raises:
        OutputError: it holds the result of another command, finished or not, is in use, or cannot be made.
    """
    for path in (*states(out / RESUME), out / MODEL):
        if path.exists():
            raise OutputError(
                f"{out} holds the {path.name} of another command; choose another --out, or remove it first"
            )
    _refuse_others(out, command)
    lock = _locked(writable_folder(out))
    try:
        yield out
    finally:
        unlock(lock)


def _locked(out: Path) -> FileLock:
    """Return the lock of a folder, held by this process.

    Raises:
        OutputError: another one holds it, or the file system has no locks.
    """
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise OutputError(f"another run works in {out}; wait for it, or choose another --out") from error
    except OSError as error:
        raise OutputError(f"cannot lock {out}: {error.strerror}; choose another --out") from error
    return lock


def _refuse_others(out: Path, command: str) -> None:
    """Raise OutputError if the record in the folder is not of this command."""
    try:
        words = str(json.loads((out / RUN).read_bytes())["command"]).split()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        words = []
    told = words[1:] if words[:1] == ["unbackdoor"] else words
    if told[: len(command.split())] != command.split():
        whose = "that unbackdoor did not write" if not words else "of another command"
        raise OutputError(f"{out} holds a {RUN} {whose}; choose another --out, or remove it first")


def writable_folder(out: Path) -> Path:
    """Make the folder and return it; a mistake is found before the work, not after it.

    Raises:
        OutputError: it cannot be made or written.
    """
    probe = out / ".probe"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        # Another process may have tried the same folder meanwhile.
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    return out


def save_trained(
    path: Path, network: Network, resume: Path, *, provenance: dict[str, Any], backdoored: dict[str, Any] | None = None
) -> None:
    """Write a model that `fit` trained, and only then remove the states from which its making could go on.

    Args:
        path: of the model's file.
        network: the model.
        resume: the file that `fit` was given; those of its stages and the folder `WORK` beside it go too.
        provenance: see `save_model`.
        backdoored: see `save_model`.

    Raises:
        OutputError: the model cannot be written; the state is still there.
    """
    save_model(path, network, provenance=provenance, backdoored=backdoored)
    remove_states(resume)
    remove_work(resume.parent / WORK)


def remove_states(resume: Path) -> None:
    """Remove the file that `fit` was given, and those of its stages."""
    for state in states(resume):
        state.unlink(missing_ok=True)


def remove_work(work: Path) -> None:
    """Remove the folder of states that `Attack.prepare` was given, if it is there; nothing but such states."""
    for state in STATES:
        (work / state).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        work.rmdir()


class Run:
    """One run of a command: its clock and its record.

    Args:
        command: the command's name.
        runtime: what it ran with.
    """

    def __init__(self, command: str, runtime: Runtime) -> None:
        self.command = command
        self.runtime = runtime
        self.started = time.perf_counter()
        self.inputs: dict[str, str] = {}
        self.options: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """Wall-clock time since the start."""
        return time.perf_counter() - self.started

    @property
    def words(self) -> str:
        """The command as it was typed."""
        own = self.command.split()
        typed = sys.argv[1 : 1 + len(own)] == own
        return shlex.join(["unbackdoor", *sys.argv[1:]]) if typed else self.command

    def record(self) -> dict[str, Any]:
        """Return what makes the run repeatable, as JSON values."""
        return {
            "command": self.words,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 1),
            "inputs": self.inputs,
            "options": self.options,
            "runtime": self.runtime.describe(),
        }

    def facts(self) -> Mapping[str, list[Fact]]:
        """Return the same for a page."""
        record = self.record()
        run = [Fact(name="Command", value=record["command"]), Fact(name="Date", value=record["date"])]
        run.append(Fact(name="Time", value=f"{record['seconds']:.0f} s"))
        run += [Fact(name=name.capitalize(), value=value) for name, value in record["runtime"].items()]
        groups = {"What was run": run}
        if self.inputs:
            groups["Inputs (SHA-256)"] = [Fact(name=name, value=value) for name, value in self.inputs.items()]
        for method, options in self.options.items():
            shown = options.items() if isinstance(options, dict) else [("value", options)]
            groups[f"Options: {method}"] = [Fact(name=name, value=_told(value)) for name, value in shown]
        return groups

    def write(self, out: Path, **results: Any) -> None:
        """Write the record and the results to the folder."""
        write_json(out / RUN, json.loads(json.dumps({**self.record(), **results}, default=str)))


def _told(value: Any) -> str:
    """Return an option as people read it; of several under one name, each."""
    if not isinstance(value, dict):
        return str(value)
    return ", ".join(f"{name} {one!r}" for name, one in value.items()) or "none"


def percent(share: Proportion) -> str:
    """Return a share with its interval, for people."""
    return f"{100 * share.value:.2f} %  [{100 * share.low:.2f}, {100 * share.high:.2f}]"


def evaluation_rows(evaluation: Evaluation, suffix: str = "") -> list[tuple[str, str]]:
    """Return the table rows of an evaluation."""
    named = {
        "ACC": evaluation.acc,
        "ASR": evaluation.asr,
        "ASR unrounded": evaluation.asr_unrounded,
        "RA": evaluation.ra,
    }
    return [(name + suffix, percent(share)) for name, share in named.items() if share is not None]
