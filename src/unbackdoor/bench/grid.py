"""A grid: the cells that a file asks for."""

from __future__ import annotations

from pathlib import Path

from unbackdoor.bench.cell import Cell, Domain
from unbackdoor.bench.images import Images
from unbackdoor.bench.molecules import Molecules
from unbackdoor.errors import InputError, UnbackdoorError
from unbackdoor.located import read_located
from unbackdoor.registry import Registry

DOMAINS: Registry[Domain] = Registry("domain", Images, Molecules)

LONGEST_TITLE = 2000
"""Characters that tell a cell from others: stores cut long texts off."""


def read_grid(path: Path) -> list[Cell]:
    """Read a grid file and return its cells, each after the one that it needs; the whole file is checked.

    Raises:
        InputError: the file cannot be read, or something in it is wrong; the message names the line.
    """
    grid = read_located(path)
    named = grid.items().get("domain")
    try:
        domain = DOMAINS[named.text() if named else Images.__name__]
    except UnbackdoorError as error:
        raise (named or grid).error(str(error)) from error
    cells = domain().cells(grid)
    if not cells:
        raise InputError(f"{path} asks for no cell at all")
    titles: dict[str, str] = {}
    for cell in cells:
        if len(cell.title) > LONGEST_TITLE:
            raise InputError(
                f"{path} has a cell whose options take more than {LONGEST_TITLE} letters to tell; use fewer"
            )
        if titles.setdefault(cell.title, cell.key) != cell.key:
            raise InputError(
                f"{path} has two cells that nobody can tell apart ({cell.title}); give different data or pictures"
                " different names"
            )
    return cells
