"""Tables for other programs and for papers: CSV, Parquet, LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from unbackdoor.files import replacing, write_bytes
from unbackdoor.report.leaderboard import Estimate, Row, ScannerRow, Standing
from unbackdoor.report.packing import SIFTED, TRAINED


def write_cells(cells: pd.DataFrame, folder: Path) -> None:
    """Write cells.csv and cells.parquet.

    Args:
        cells: as `cell_table` gives them.
        folder: where.

    Raises:
        OutputError: the files cannot be written.
    """
    write_bytes(folder / "cells.csv", csv_bytes(cells))
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
    _write("ranking", [_flat(row) for row in rows], [_printed(row) for row in rows], folder)


def write_trainers(rows: Sequence[Standing], folder: Path) -> None:
    """Write secure.csv and secure.tex of the methods that train securely (see `write_ranking`)."""
    titles = {r"DER (\%)": "der", r"ACC (\%)": "acc", r"ASR (\%)": "asr", r"RA (\%)": "ra"}
    _write("secure", [_plain(row, TRAINED) for row in rows], [_shown(row, titles) for row in rows], folder)


def write_sifters(rows: Sequence[Standing], folder: Path) -> None:
    """Write sift.csv and sift.tex of the sifters (see `write_ranking`)."""
    titles = {
        r"AUROC (\%)": "auroc",
        r"TPR at FPR 1\% (\%)": "tpr_at_1",
        r"TPR (\%)": "tpr",
        r"FPR (\%)": "fpr",
        r"False alarms (\%)": "clean",
    }
    _write("sift", [_plain(row, SIFTED) for row in rows], [_shown(row, titles) for row in rows], folder)


def write_scanners(rows: Sequence[ScannerRow], folder: Path) -> None:
    """Write scan.csv and scan.tex of the scanners: counts of models (see `write_ranking`)."""
    printed = [
        {
            "Method": _escaped(row.method),
            "Backdoors found": f"{row.flagged} of {row.backdoored}",
            "Target first": f"{row.target_first} of {row.targeted}",
            "False alarms": f"{row.false_alarms} of {row.clean}",
            "Inconclusive": str(row.inconclusive),
            "Time (s)": _whole(row.seconds),
        }
        for row in rows
    ]
    _write("scan", [_counted(row) for row in rows], printed, folder)


def _write(name: str, flat: Sequence[dict[str, object]], printed: Sequence[dict[str, str]], folder: Path) -> None:
    """Write NAME.csv and NAME.tex, or remove earlier ones if there is no row."""
    if not flat:
        for ending in ("csv", "tex"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
        return
    write_bytes(folder / f"{name}.csv", csv_bytes(pd.DataFrame(flat)))
    table = pd.DataFrame(printed)
    text = table.style.hide(axis="index").to_latex(hrules=True, column_format="l" + "r" * (table.shape[1] - 1))
    write_bytes(folder / f"{name}.tex", text.encode())


def csv_bytes(table: pd.DataFrame) -> bytes:
    """Return a table as CSV that is safe to open in a spreadsheet."""

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
        flat |= _ends(name, estimate)
    return flat | {"seconds": row.seconds, "peak_mb": row.peak_mb, "peak_gpu_mb": row.peak_gpu_mb}


def _plain(row: Standing, names: Sequence[str]) -> dict[str, object]:
    flat: dict[str, object] = {"method": row.method, "blocks": row.blocks, "complete": row.complete}
    for name, estimate in {"rank": row.rank, **{name: row.figures.get(name) for name in names}}.items():
        flat |= _ends(name, estimate)
    return flat | {"seconds": row.seconds, "peak_mb": row.peak_mb, "peak_gpu_mb": row.peak_gpu_mb}


def _counted(row: ScannerRow) -> dict[str, object]:
    flat = asdict(row)
    for attack, (flagged, scanned) in flat.pop("attacks").items():
        flat |= {f"{attack} flagged": flagged, f"{attack} backdoored": scanned}
    return flat


def _ends(name: str, estimate: Estimate | None) -> dict[str, object]:
    ends = estimate or Estimate(value=float("nan"))
    return {name: ends.value, f"{name}_low": ends.low, f"{name}_high": ends.high}


def _shown(row: Standing, titles: Mapping[str, str]) -> dict[str, str]:
    return {
        "Method": _escaped(row.method),
        "Rank": "--" if row.rank is None else f"{row.rank.value:g}",
        **{title: _percent(row.figures.get(name)) for title, name in titles.items()},
        "Time (s)": _whole(row.seconds),
    }


def _printed(row: Row) -> dict[str, str]:
    return {
        "Method": _escaped(row.method),
        "Rank": "--" if row.rank is None else f"{row.rank.value:g}",
        r"DER (\%)": _percent(row.der),
        r"ACC (\%)": _percent(row.acc),
        r"ASR (\%)": _percent(row.asr),
        r"RA (\%)": _percent(row.ra),
        "Time (s)": _whole(row.seconds),
    }


def _whole(seconds: float | None) -> str:
    return "--" if seconds is None else f"{seconds:.0f}"


def _percent(share: Estimate | None) -> str:
    return "--" if share is None else f"{100 * share.value:.2f}"


def _escaped(text: str) -> str:
    """Return text with the characters escaped that LaTeX reads as commands."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
