"""The state of an interrupted run, on disk."""

from __future__ import annotations

import glob
import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unbackdoor.errors import ResumeError
from unbackdoor.files import write_bytes

DIGEST_BYTES = 32


def sealed(payload: bytes) -> bytes:
    """Return `payload` with its SHA-256 before it, by which a change of any byte is noticed."""
    return hashlib.sha256(payload).digest() + payload


def hash_state(digest: hashlib._Hash, model: nn.Module, names_alone: frozenset[str] = frozenset()) -> None:
    """Add a model's state to a digest, names and values; of some parts of it the names alone."""
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        if name not in names_alone:
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)


def stage(resume: Path | None, name: str) -> Path | None:
    """Return the file of one stage of a method that has several; None stays None."""
    return None if resume is None else resume.with_stem(f"{resume.stem}-{name}")


def states(resume: Path) -> list[Path]:
    """Return the states of interrupted runs that are there: the file itself and those of its stages."""
    stages = sorted(resume.parent.glob(f"{glob.escape(resume.stem)}-*{glob.escape(resume.suffix)}"))
    return [path for path in (resume, *stages) if path.exists()]


class Resume:
    """A file that holds a run's state after its last finished epoch, sealed; `torch.save` made what is inside.

    Args:
        path: of the file; it need not exist.
        fingerprint: of the run; a file with another one is refused.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        self.path = path
        self.fingerprint = fingerprint

    def read(self) -> dict[str, Any] | None:
        """Return the state, or None if there is no file.

        Raises:
            ResumeError: the file is damaged or belongs to another run.
        """
        if not self.path.exists():
            return None
        try:
            content = self.path.read_bytes()
            payload = content[DIGEST_BYTES:]
            if sealed(payload) != content:
                raise ValueError("the checksum is another")
            state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
            fingerprint = state.pop("fingerprint")
        # What PyTorch raises for a broken pickle is no closed list.
        except Exception as error:
            raise ResumeError(f"{self.path} cannot be resumed from (damaged); delete it to start again") from error
        if fingerprint != self.fingerprint:
            raise ResumeError(
                f"{self.path} belongs to an interrupted run with other settings or data; repeat those settings,"
                " delete it to start again, or choose another output folder"
            )
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file by this state, complete or not at all."""
        buffer = io.BytesIO()
        torch.save({**state, "fingerprint": self.fingerprint}, buffer)
        write_bytes(self.path, sealed(buffer.getvalue()))
