"""Generators of molecules: backdoored by BadGraph or clean, trained and measured, one cell each.

What needs RDKit is imported where it is used: the grids of other domains need none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.errors import InputError
from unbackdoor.located import Located
from unbackdoor.training import Runtime

PACKAGES = frozenset({"rdkit", "tokenizers"})


class Molecules(Domain):
    """Generators of molecules."""

    alike = (
        ("data", "test", "model", "attack", "poison_rate", "poison_in", "precision", "budget"),
        ("data", "test", "model", "precision", "budget"),
        ("model", "budget"),
    )

    def cells(self, grid: Located) -> list[Cell]:
        """Return the generators, seed by seed (see `Domain.cells`)."""
        with _packages():
            from unbackdoor.bench.molecule_cells import cells_of
        return cells_of(self, grid)

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Train and measure a generator (see `Domain.run`)."""
        with _packages():
            from unbackdoor.bench.molecule_victims import make_generator
        return make_generator(cell, folder, runtime)


@contextmanager
def _packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise InputError(f"grids of molecules need {error.name}: pip install 'unbackdoor[molecules]'") from error
