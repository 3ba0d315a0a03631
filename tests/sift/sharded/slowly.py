"""A sifter that takes its time and notes who is at work: for workers that are lost. Workers import it."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from unbackdoor.models import Network
from unbackdoor.sift import LossIsolation
from unbackdoor.sift.observed import Observed


@dataclass(frozen=True, kw_only=True)
class Slowly(LossIsolation):
    """Scores as its base does, some seconds later.

    Attributes:
        seconds: that a piece takes.
        noted: folder, in which each piece leaves a file with the process that scores it.
    """

    seconds: float
    noted: Path

    def measure(self, seen: Observed, model: Network) -> tuple[Tensor, dict[str, int]]:
        partial = self.noted / f".{uuid.uuid4()}"
        partial.write_text(str(os.getpid()))
        partial.rename(self.noted / partial.name[1:])
        time.sleep(self.seconds)
        return super().measure(seen, model)


def at_work(noted: Path) -> list[int]:
    """Return the processes that began a piece, in no order."""
    return [int(path.read_text()) for path in noted.glob("[!.]*")]
