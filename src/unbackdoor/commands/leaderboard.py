"""Rank the methods of an MLflow store on one page, and write their figures as CSV, Parquet and LaTeX.

Writes report.html, cells.csv, cells.parquet, and tables of each kind of methods that there is, as CSV and LaTeX:
ranking (repairs), scan, sift and secure. Generators of molecules have a page of their own, generators.html, and
generators.csv; where there is nothing else, theirs is the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from unbackdoor.bench.export import write_cells, write_ranking, write_scanners, write_sifters, write_trainers
from unbackdoor.bench.grid import read_grid
from unbackdoor.bench.leaderboard import leaderboard
from unbackdoor.bench.molecule_board import GENERATORS, generators, write_board
from unbackdoor.bench.store import Store
from unbackdoor.bench.table import cell_table
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import report_folder
from unbackdoor.files import write_json
from unbackdoor.folder import PAGE, RUN
from unbackdoor.report.leaderboard import Row, Selection, Standing, write_leaderboard

RUNTIME = False

TRAINED = {"der": "DER", "acc": "ACC", "asr": "ASR", "ra": "RA"}
SIFTED = {"auroc": "AUROC", "tpr_at_1": "TPR at FPR 1 %", "tpr": "TPR", "fpr": "FPR", "clean": "false alarms"}
"""Figures that are told, and what they are called."""

BOARD = "generators.html"
TABLES = (
    "cells.csv",
    "cells.parquet",
    *(f"{name}.{ending}" for name in ("ranking", "scan", "sift", "secure") for ending in ("csv", "tex")),
)
"""Files of what is no generator of molecules."""


def run(
    *,
    store: str | None = None,
    work: Path = Path("runs/bench"),
    grid: Path | None = None,
    out: Path = Path("runs/leaderboard"),
) -> Outcome:
    """Write the leaderboard.

    Args:
        store: see `unbackdoor bench`.
        work: see `unbackdoor bench`.
        grid: YAML file; only its cells are ranked. By default all cells of the store.
        out: folder for the page and the tables; an earlier leaderboard in it is replaced.
    """
    records = Store(store, work).records()
    if grid is not None:
        keys = {cell.key for cell in read_grid(grid)}
        records = [record for record in records if record.key in keys]
    title = f"Leaderboard of {grid.stem}" if grid else "Leaderboard"
    made, cells = generators(records), cell_table(records)
    if cells.empty and len(made):
        with report_folder(out, "leaderboard") as folder:
            return _of_generators(made, title, folder)
    board = leaderboard(cells, title)
    # What the page shows while no filter is set.
    everything = board.selections.get(("",) * len(board.filters))
    shown = everything or Selection(blocks=0)
    with report_folder(out, "leaderboard") as folder:
        write_json(folder / RUN, {"command": "unbackdoor leaderboard", "cells": len(cells)})
        write_cells(cells, folder)
        write_ranking(shown.methods, folder)
        write_scanners(shown.scanners, folder)
        write_sifters(shown.sifters, folder)
        write_trainers(shown.trainers, folder)
        write_leaderboard(folder / PAGE, board)
        if len(made):
            write_board(folder, BOARD, made, f"{title}: generators of molecules")
        else:
            _remove(folder, (BOARD, GENERATORS))
        return Outcome(
            title=title,
            rows=[
                *((row.method, _sentence(row)) for row in shown.methods),
                *((f"secure: {row.method}", _told(row, TRAINED)) for row in shown.trainers),
                *((f"sift: {row.method}", _told(row, SIFTED)) for row in shown.sifters),
                ("cells", str(len(cells))),
            ],
            result={
                "cells": len(cells),
                "methods": [row.method for row in shown.methods],
                "scanners": [row.method for row in shown.scanners],
                "sifters": [row.method for row in shown.sifters],
                "secure trainers": [row.method for row in shown.trainers],
            },
            page=folder / PAGE,
        )


def _remove(folder: Path, names: Iterable[str]) -> None:
    """Remove what an earlier leaderboard wrote there and this one does not: nobody could tell that it is old."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _told(row: Standing, names: Mapping[str, str]) -> str:
    shares = [f"{title} {100 * row.figures[name].value:.2f} %" for name, title in names.items() if name in row.figures]
    place = f"rank {row.rank.value:g}" if row.rank else "not ranked"
    return ", ".join([place, *shares, f"{row.blocks} blocks"])


def _of_generators(made: pd.DataFrame, title: str, folder: Path) -> Outcome:
    """Write the page of a store that holds generators of molecules alone."""
    write_json(folder / RUN, {"command": "unbackdoor leaderboard", "cells": len(made)})
    write_board(folder, PAGE, made, title)
    _remove(folder, (BOARD, *TABLES))
    return Outcome(title=title, rows=[("cells", str(len(made)))], result={"cells": len(made)}, page=folder / PAGE)


def _sentence(row: Row) -> str:
    shares = {"DER": row.der, "ACC": row.acc, "ASR": row.asr, "RA": row.ra}
    told = [f"{name} {100 * share.value:.2f} %" for name, share in shares.items() if share is not None]
    rank = "not ranked: blocks are missing" if row.rank is None else f"rank {row.rank.value:g}"
    return ", ".join([rank, *told, f"{row.blocks} blocks"])
