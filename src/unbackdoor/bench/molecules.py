"""Generators of molecules: backdoored by BadGraph or clean, scanners that judge them, purifiers that repair them.

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
        ("data", "test", "model", "attack", "poison_rate", "poison_in", "precision", "budget", "method", "scanner"),
        ("data", "test", "model", "precision", "budget", "method", "scanner"),
        ("model", "budget", "method", "scanner"),
    )

    def cells(self, grid: Located) -> list[Cell]:
        """Return the generators and what is done with each, seed by seed (see `Domain.cells`)."""
        with _packages():
            from unbackdoor.bench.molecule_cells import cells_of
        return cells_of(self, grid)

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Do one of the things that `cells` names (see `Domain.run`)."""
        with _packages():
            from unbackdoor.bench.molecule_defences import purify_generator, scan_molecules
            from unbackdoor.bench.molecule_victims import make_generator
        if cell.kind == "victim":
            return make_generator(cell, folder, runtime)
        do = scan_molecules if cell.kind == "scan" else purify_generator
        return do(cell, cell.work, given, folder, cell.work.runtime(runtime))


@contextmanager
def _packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise InputError(f"grids of molecules need {error.name}: pip install 'unbackdoor[molecules]'") from error
