"""Train many small models, clean and backdoored, by which scanners are calibrated and judged.

Writes models/NAME.safetensors and index.jsonl, a line a model. What is there is not made again, an interrupted model
goes on, and the same command on several cores or machines shares the work. Half of the attacks, and every second seed,
are held out by their names and numbers; a round of a zoo is one or the other.

With --table, the verdict's scanners then look at every model (scans.jsonl), and a file of calibration tables is written
for `scan --scanner Verdict --scanner.table FILE`, judged on what was held out.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacks import ATTACKS
from unbackdoor.bench.calibrate import check_plan, tables_of, told_of
from unbackdoor.bench.judge import Judged
from unbackdoor.bench.zoo import INDEX, NETWORKS, QUICK, fill, plan
from unbackdoor.bench.zoo_scans import Scanned, scan_zoo, sizes_for, usable_of
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import OWN_NETWORK
from unbackdoor.commands.workspace import Run, writable_folder
from unbackdoor.data import ImageSet, read_images
from unbackdoor.errors import InputError, OutputError
from unbackdoor.scan.calibration import Table
from unbackdoor.scan.calibration_file import holds_tables, write_tables
from unbackdoor.scan.verdict import DETECTORS
from unbackdoor.training import Recipe, Runtime, architecture_of

CHOICES = {"model": OWN_NETWORK}
WITHOUT = frozenset({"seed", "budget"})
"""Options of the runtime that would do nothing: every model has a seed and a schedule of its own."""


def run(
    *,
    data: str,
    out: Path,
    model: partial[nn.Module] | None = None,
    rounds: int = 2,
    size: int = 10000,
    attacks: list[str] | None = None,
    recipe: Recipe = QUICK,
    table: Path | None = None,
    runtime: Runtime,
) -> Outcome:
    """Make a zoo, or go on with one.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder of the zoo; several data sets may share one.
        model: the network of all models; a small PreActResNet18 and a small WRN16x1 in turn if none is named.
        rounds: a round has a model of each attack that is not held out (the first, third, ...) or of each that is (the
            second, fourth, ...), and as many clean ones. A table for 5 % takes seven, of one network three.
        size: training images of a model, drawn class-balanced by its seed; all that are not kept back for its scans if
            there are fewer.
        attacks: names, as [BadNets, SIG]; all if none are named.
        recipe: how models are trained.
        table: file of calibration tables to write; one that is there is replaced.
        runtime: device, precision, threads and progress.
    """
    clock = Run("zoo", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    networks: Sequence[partial[Any]] = NETWORKS if model is None else (model,)
    entries = plan(train.name.split("/")[0], sorted(attacks or ATTACKS), rounds, networks)
    if table is not None:
        # Mistakes are found before hours of work, not after them.
        check_plan(entries, [architecture_of(network) for network in networks])
        _check_table(table)
    writable_folder(out)
    rows = fill(out, entries, train, test, size, recipe, runtime, networks)
    others = len(entries) - len(rows)
    tables: list[Table] = []
    judgements: list[Judged] = []
    if table is not None and not others:
        tables, judgements, others = calibrated(out, rows, networks, train, runtime)
    if table is not None and tables:
        write_tables(table, tables, made_by="unbackdoor zoo", date=datetime.now(UTC).date().isoformat())
    counts = counted(rows)
    return Outcome(
        title=f"zoo of {train.name}",
        rows=[
            *((name, str(count)) for name, count in counts.items()),
            *_means(rows),
            *_judged_rows(tables, judgements),
            ("time", f"{clock.seconds:.0f} s"),
        ],
        result={
            **counts,
            "planned": len(entries),
            "index": str(out / INDEX),
            "tables": [one.to_json() for one in tables],
        },
        sentence=f"{others} models are being made or scanned by others; the same command waits for none of them"
        + (", and no table was written." if table is not None else ".")
        if others
        else "",
    )


def calibrated(
    out: Path, rows: Sequence[dict[str, Any]], networks: Sequence[partial[Any]], train: ImageSet, runtime: Runtime
) -> tuple[list[Table], list[Judged], int]:
    """Let the verdict's scanners look at a whole zoo, and make its tables.

    Args:
        out: the zoo's folder.
        rows: of its index.
        networks: that it was made with.
        train: its training images.
        runtime: see `run`.

    Returns:
        The tables, how the verdict does with each number of clean images, and how many models others are scanning;
        no tables if any.

    Raises:
        InputError: too few models.
    """
    told, data = told_of(rows[0]["made"]), rows[0]["data"]
    tables: list[Table] = []
    judgements = []
    for size in sizes_for(train):
        looked = scan_zoo(out, rows, networks, train, DETECTORS, size, runtime)
        others = len(usable_of(rows)) - len(looked)
        if others:
            return [], [], others
        models = [Scanned.of(row, scans) for row, scans in looked]
        made, (verdict, *_) = tables_of(
            told, data, train.class_names, train.shape, networks, size, runtime.precision, DETECTORS, models
        )
        tables += made
        judgements.append(verdict)
    return tables, judgements, 0


def _check_table(table: Path) -> None:
    """Refuse a place where the tables cannot be written, and a file that holds something else.

    Raises:
        InputError: something else is there.
        OutputError: the file cannot be written there.
    """
    if table.is_dir():
        raise OutputError(f"{table} is a folder; name a file for the tables")
    writable_folder(table.parent)
    if table.exists() and not holds_tables(table):
        raise InputError(f"{table} holds no calibration tables, and would be replaced; name another file")


def _judged_rows(tables: Sequence[Table], judgements: Sequence[Judged]) -> list[tuple[str, str]]:
    """Return how the verdict does on what was held out, a row for each number of clean images."""
    sizes = sorted({table.clean_size for table in tables})
    return [
        (
            f"verdict, {size} images",
            f"AUROC {one.auroc:.3f}; {one.held_out.found} of {one.held_out.backdoored} backdoored and"
            f" {one.held_out.alarms} of {one.held_out.clean} clean models called backdoored, held out, at a rate of"
            f" {100 * tables[0].rate:.3g} %",
        )
        for size, one in zip(sizes, judgements)
    ]


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many models there are of each kind."""
    kinds = [row.get("backdoored") for row in rows if "refused" not in row]
    return {
        "clean": kinds.count(False),
        "backdoored": kinds.count(True),
        "attack failed": kinds.count(None),
        "no model came of it": len(rows) - len(kinds),
    }


def _means(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the mean accuracy of the clean models and the mean success of the attacks."""
    accuracy = [row["acc"] for row in rows if row.get("backdoored") is False]
    success = [row["asr"] for row in rows if row.get("backdoored")]
    named = (("ACC of clean models, mean", accuracy), ("ASR of backdoored models, mean", success))
    return [(name, f"{100 * statistics.mean(values):.1f} %") for name, values in named if values]
