"""Tables for other programs and for papers: CSV, Parquet, LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from unbackdoor.files import replacing, write_bytes
from unbackdoor.report.leaderboard import Estimate, Row


def write_cells(cells: pd.DataFrame, folder: Path) -> None:
    """Write cells.csv and cells.parquet.

    Args:
        cells: as `cell_table` gives them.
        folder: where.

    Raises:
        OutputError: the files cannot be written.
    """
    write_bytes(folder / "cells.csv", _csv(cells))
    with replacing(folder / "cells.parquet") as partial:
        cells.to_parquet(partial, index=False)


def write_ranking(rows: Sequence[Row], folder: Path) -> None:
    """Write ranking.csv, with fractions, and ranking.tex, with percent; without methods, remove earlier ones.

    Args:
        rows: in their order.
        folder: where.

    Raises:
        OutputError: the files cannot be written.
    """
    if not rows:
        for name in ("ranking.csv", "ranking.tex"):
            (folder / name).unlink(missing_ok=True)
        return
    write_bytes(folder / "ranking.csv", _csv(pd.DataFrame([_flat(row) for row in rows])))
    table = pd.DataFrame([_printed(row) for row in rows])
    text = table.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (table.shape[1] - 1))
    write_bytes(folder / "ranking.tex", text.encode())


def _csv(table: pd.DataFrame) -> bytes:
    # A spreadsheet takes text that begins so for a formula, and runs it.
    def harmless(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and value[:1] in set("=+-@\t\r") else value

    text: str = table.map(harmless).rename(columns=harmless).to_csv(index=False)
    return text.encode()


def _flat(row: Row) -> dict[str, object]:
    flat: dict[str, object] = {"method": row.method, "blocks": row.blocks}
    named = {"rank": row.rank, "der": row.der, "acc": row.acc, "asr": row.asr, "ra": row.ra}
    for attack, shares in row.attacks.items():
        named |= {f"{attack} {name}": share for name, share in shares.items()}
    for name, estimate in named.items():
        ends = estimate or Estimate(value=float("nan"))
        flat |= {name: ends.value, f"{name}_low": ends.low, f"{name}_high": ends.high}
    return flat | {"seconds": row.seconds, "peak_mb": row.peak_mb}


def _printed(row: Row) -> dict[str, str]:
    return {
        "Method": _escaped(row.method),
        "Rank": "--" if row.rank is None else f"{row.rank.value:g}",
        r"DER (\%)": _percent(row.der),
        r"ACC (\%)": _percent(row.acc),
        r"ASR (\%)": _percent(row.asr),
        r"RA (\%)": _percent(row.ra),
        "Time (s)": "--" if row.seconds is None else f"{row.seconds:.0f}",
    }


def _percent(share: Estimate | None) -> str:
    return "--" if share is None else f"{100 * share.value:.2f}"


def _escaped(text: str) -> str:
    """Return text with the characters escaped that LaTeX reads as commands."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
