"""Writing files so that they are either complete or absent, hashing what was read, and locks that leave no file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from unbackdoor.errors import OutputError


def sha256(payload: bytes) -> str:
    """Return the SHA-256 of `payload` as 64 hexadecimal digits."""
    return hashlib.sha256(payload).hexdigest()


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the whole of a regular file, opened once.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a device, a pipe or a folder, or has more than `limit` bytes; nothing was read.
    """
    # Opening a named pipe would wait for ever for somebody to write to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no regular file")
        if status.st_size > limit:
            raise ValueError(f"it has {status.st_size} bytes, more than the {limit} that are accepted")
        return file.read(status.st_size)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there if the block succeeds, delete it if not.

    Raises:
        OutputError: the folder cannot be written or the disk is full; nothing is left behind.
    """
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
        os.close(handle)
        partial = Path(name)
        yield partial
        # mkstemp makes private files; a result has the permissions that any new file would have.
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"cannot write {path}: {reason}; choose a folder that can be written and has space"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def _umask() -> int:
    """Return the process's file mode mask (the only way to read it is to set it)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, payload: bytes) -> None:
    """Write `payload` to `path`, complete or not at all."""
    with replacing(path) as partial:
        partial.write_bytes(payload)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON to `path`, complete or not at all.

    NaN and infinite numbers, which JSON does not have, are written as null: "no number" to every reader, where a text
    would break those that expect one. Only ASCII is written: half a character, as names of files can hold, has no
    encoding of its own.
    """
    text = json.dumps(without_nan(content), indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode())


def without_nan(content: Any) -> Any:
    """Return `content` with None in place of every NaN and infinite number."""
    match content:
        case float():
            return content if math.isfinite(content) else None
        case dict():
            return {name: without_nan(value) for name, value in content.items()}
        case list() | tuple():
            return [without_nan(value) for value in content]
    return content


def unlock(lock: FileLock) -> None:
    """Release a lock and remove its file.

    The file goes first, while it is still locked. Another process may have opened it before and get its lock
    afterwards, beside a third one with a new file: whoever gets a lock looks again whether there is work to do.
    """
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
