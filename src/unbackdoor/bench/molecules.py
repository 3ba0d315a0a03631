"""Generators of molecules: backdoored by BadGraph or clean, trained and measured, one cell each.

What needs RDKit is imported where it is used: the grids of other domains need none.
"""

from __future__ import annotations

from pathlib import Path

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.bench.located import Located
from unbackdoor.errors import InputError
from unbackdoor.training import Runtime

NEEDS = "grids of molecules need RDKit and tokenizers: pip install 'unbackdoor[molecules]'"


class Molecules(Domain):
    """Generators of molecules."""

    alike = (
        ("data", "test", "model", "attack", "poison_rate", "poison_in", "precision", "budget"),
        ("data", "test", "model", "precision", "budget"),
        ("model", "budget"),
    )

    def cells(self, grid: Located) -> list[Cell]:
        """Return the generators, seed by seed (see `Domain.cells`)."""
        try:
            from unbackdoor.bench.molecule_cells import cells_of
        except ModuleNotFoundError as error:
            raise InputError(NEEDS) from error
        return cells_of(self, grid)

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Train and measure a generator (see `Domain.run`)."""
        try:
            from unbackdoor.bench.molecule_cells import make_generator
        except ModuleNotFoundError as error:
            raise InputError(NEEDS) from error
        return make_generator(cell, folder, runtime)
