"""Generators of molecules: backdoored by BadGraph or clean, trained and measured, one cell each.

What needs RDKit is imported where it is used: the grids of other domains need none.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

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
        cells: list[Cell] = _work().cells_of(self, grid)
        return cells

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Train and measure a generator (see `Domain.run`)."""
        result: Result = _work().make_generator(cell, folder, runtime)
        return result


def _work() -> ModuleType:
    try:
        from unbackdoor.bench import molecule_cells
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise InputError(f"grids of molecules need {error.name}: pip install 'unbackdoor[molecules]'") from error
    return molecule_cells
