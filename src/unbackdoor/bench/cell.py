"""`Cell`: one piece of a grid's work. The bench knows no images: what a cell does is its domain's business."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from unbackdoor.files import sha256
from unbackdoor.located import Located
from unbackdoor.training import Runtime

FORMAT = 1
"""Part of every key: raised when the same recipes mean other work than before, whatever the method.

Where that is so of one method alone, its `revision` is raised, and the cells of all others stay done.
"""

Label = str | float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One piece of work, done once and found again by what decides its result.

    Attributes:
        domain: what knows how to do it.
        kind: "victim", or what is done with one: "purify", "scan"; "poison", or what is done with poisoned data:
            "quick" (a model of them for sifters), "sift", "secure".
        labels: what people tell cells apart by, the same names in all cells of a domain.
        recipe: all that decides the result but the cell that it needs, as JSON values.
        work: what the domain does it with; decides nothing that `recipe` does not say.
        needs: the cell from whose files it starts.
    """

    domain: Domain
    kind: str
    labels: Mapping[str, Label]
    recipe: Mapping[str, Any]
    work: Any = field(repr=False)
    needs: Cell | None = None

    @cached_property
    def key(self) -> str:
        """The SHA-256 of all that decides the result (64 hexadecimal digits)."""
        decisive = [FORMAT, type(self.domain).__name__, self.kind, self.recipe, self.needed or None]
        return sha256(json.dumps(decisive, sort_keys=True).encode())

    @property
    def needed(self) -> str:
        """The key of the cell that it needs; empty if there is none."""
        return self.needs.key if self.needs else ""

    @property
    def title(self) -> str:
        """The cell in a few words."""
        named = {name.replace("_", " "): value for name, value in self.labels.items() if value is not None}
        words = [value if isinstance(value, str) else f"{name} {value}" for name, value in named.items()]
        return f"{self.kind}: {' · '.join(words)}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell.

    Attributes:
        metrics: by name; shares are fractions in [0, 1].
        details: JSON values, for whoever needs more than the metrics.
        files: in the cell's folder, by the name under which they are kept.
        optional: names of those that are kept only on request, such as large ones that no other cell needs.
    """

    metrics: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()


class Domain(ABC):
    """Cells of one kind of models: images, molecules. Without state; named in a grid by its class's name.

    Attributes:
        alike: sets of labels, the largest first: cells that agree in all of a set take about as long as each other.
    """

    alike: ClassVar[Sequence[Sequence[str]]] = ()

    @abstractmethod
    def cells(self, grid: Located) -> list[Cell]:
        """Return all cells of a grid, each after the one that it needs, in the order in which they are to be done.

        Raises:
            InputError: the grid is wrong; the message names the line.
        """

    @abstractmethod
    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Do one cell.

        Args:
            cell: one that `cells` returned.
            given: folder with the files of the cell that this one needs, `details.json` among them.
            folder: of the cell's own, in which an interrupted run of it may find its state.
            runtime: device, threads and progress; seed, precision and budget are the cell's business.

        Raises:
            UnbackdoorError: it cannot be done.
        """
