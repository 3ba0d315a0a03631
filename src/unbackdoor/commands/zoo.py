"""Train many small models, clean and backdoored, by which scanners are calibrated and judged.

Writes models/NAME.safetensors and index.jsonl, a line a model. What is there is not made again, an interrupted model
goes on, and the same command on several cores or machines shares the work. Half of the attacks, and every second seed,
are held out by their names and numbers; a round of a zoo is one or the other.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbackdoor.attacks import ATTACKS
from unbackdoor.bench.zoo import INDEX, QUICK, fill, plan
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.workspace import Run, writable_folder
from unbackdoor.data import read_images
from unbackdoor.training import Recipe, Runtime


def run(
    *,
    data: str,
    out: Path,
    rounds: int = 2,
    size: int = 10000,
    attacks: list[str] | None = None,
    recipe: Recipe = QUICK,
    runtime: Runtime,
) -> Outcome:
    """Make a zoo, or go on with one.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder of the zoo; several data sets may share one.
        rounds: a round has a model of each attack that is not held out (the first, third, ...) or of each that is (the
            second, fourth, ...), and as many clean ones.
        size: training images of a model, drawn class-balanced by its seed; all if there are fewer.
        attacks: names, as [BadNets, SIG]; all if none are named.
        recipe: how models are trained.
        runtime: device and precision; every model has a seed of its own.
    """
    clock = Run("zoo", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    entries = plan(train.name.split("/")[0], sorted(attacks or ATTACKS), rounds)
    writable_folder(out)
    rows = fill(out, entries, train, test, size, recipe, runtime)
    counts = counted(rows)
    return Outcome(
        title=f"zoo of {train.name}",
        rows=[
            *((name, str(count)) for name, count in counts.items()),
            *_means(rows),
            ("time", f"{clock.seconds:.0f} s"),
        ],
        result={**counts, "planned": len(entries), "index": str(out / INDEX)},
        sentence=""
        if len(rows) == len(entries)
        else f"{len(entries) - len(rows)} models are being made by others; the same command waits for none of them.",
    )


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return how many models there are of each kind."""
    kinds = [row.get("backdoored") for row in rows if "refused" not in row]
    return {
        "clean": kinds.count(False),
        "backdoored": kinds.count(True),
        "attack failed": kinds.count(None),
        "attack refused": len(rows) - len(kinds),
    }


def _means(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the mean accuracy of the clean models and the mean success of the attacks."""
    accuracy = [row["acc"] for row in rows if row.get("backdoored") is False]
    success = [row["asr"] for row in rows if row.get("backdoored")]
    named = (("ACC of clean models, mean", accuracy), ("ASR of backdoored models, mean", success))
    return [(name, f"{100 * statistics.mean(values):.1f} %") for name, values in named if values]
