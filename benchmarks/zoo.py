"""The calibration of the verdict: zoos of small models, scans, tables, and a judgement on what was held out.

Writes zoo and scans to --work, one line a model to results/zoo.jsonl, the judgement to results/zoo.md, and the tables
to the package (scan/calibration.json). Nothing is done twice, an interrupted model goes on, and the same command on
several cores shares the work:

    python benchmarks/zoo.py --data ../shared/data --kinds cifar10 --threads 1 &
    python benchmarks/zoo.py --data ../shared/data --kinds cifar10 --threads 1
    python benchmarks/zoo.py --kinds cifar10 --table          # only tables and judgement, from results/zoo.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import torch
from record import HERE

from unbackdoor.attacks import ATTACKS
from unbackdoor.bench.calibrate import Judged, Scanned, scan_zoo, table_of
from unbackdoor.bench.zoo import NETWORKS, QUICK, Part, fill, plan
from unbackdoor.data import ImageSet, read_images
from unbackdoor.errors import InputError
from unbackdoor.files import write_bytes, write_json
from unbackdoor.options import short_name
from unbackdoor.scan import Scanner
from unbackdoor.scan.calibration import FORMAT, SHIPPED, Table
from unbackdoor.scan.verdict import DETECTORS
from unbackdoor.training import Recipe, Runtime, new_network

ROWS, TABLE = HERE / "results" / "zoo.jsonl", HERE / "results" / "zoo.md"
RATE = 0.05
"""Of false alarms, at which the verdict is judged."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model.

    Attributes:
        source: of its images, a folder of --data, or "digits".
        size: training images of a model.
        recipe: how models are trained.
        rounds: of the zoo, half of which are held out.
        clean_size: clean images that the detectors get.
        detectors: that the verdict on this kind weighs.
        attacks: names; those that train networks of their own before the victim take longer.
    """

    source: str
    size: int
    recipe: Recipe
    rounds: int
    clean_size: int
    detectors: tuple[Scanner, ...] = DETECTORS
    attacks: tuple[str, ...] = tuple(sorted(ATTACKS))


KINDS = {
    "digits": Kind(
        source="digits",
        size=1400,
        recipe=Recipe(epochs=8, batch_size=64, learning_rate=0.1, augmentation="crop"),
        rounds=7,
        clean_size=50,
        # Without Neural Cleanse, which takes most of a scan's time.
        detectors=DETECTORS[:3],
        attacks=(
            *("AdaptiveBlend", "AdaptivePatch", "BadNets", "CTRL", "FTrojan", "Refool", "TaCT"),
            *("BPP", "Blended", "MESAPatch", "SIG", "Smooth", "WaNet"),
        ),
    ),
    "cifar10": Kind(source="cifar10", size=10_000, recipe=QUICK, rounds=12, clean_size=250),
    "gtsrb": Kind(
        source="gtsrb",
        size=12_000,
        recipe=replace(QUICK, augmentation="crop"),
        rounds=6,
        clean_size=250,
    ),
}


def work(name: str, kind: Kind, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Make the zoo of a kind, let the detectors look at it, and return a line a model."""
    source = "digits" if kind.source == "digits" else str(arguments.data / kind.source)
    train, test = read_images(source, "train"), read_images(source, "test")
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    entries = plan(name, kind.attacks, arguments.rounds or kind.rounds)
    rows = fill(arguments.work, entries, train, test, kind.size, kind.recipe, runtime)
    looked = scan_zoo(arguments.work, rows, train, kind.detectors, kind.clean_size, runtime)
    device = {name: value for name, value in runtime.describe().items() if name in ("device", "threads", "torch")}
    facts = {"kind": name, "classes": list(train.class_names), "shape": list(train.shape), **device}
    lines = [{**facts, "clean_size": kind.clean_size, "row": row, "scans": scans} for row, scans in looked]
    scanned = {line["row"]["key"] for line in lines}
    # Attacks that failed, or refused the images, are told of as well.
    return lines + [{**facts, "row": row, "scans": []} for row in rows if row["key"] not in scanned]


def table_of_kind(name: str, kind: Kind, lines: Sequence[dict[str, Any]]) -> tuple[Table, list[Judged]]:
    """Return the calibration table of a kind, and how it does."""
    models = [Scanned.of(line["row"], line["scans"]) for line in lines if line["scans"]]
    shape = lines[0]["shape"]
    blank = ImageSet(
        images=torch.zeros(1, *shape, dtype=torch.uint8),
        labels=torch.zeros(1, dtype=torch.long),
        class_names=tuple(lines[0]["classes"]),
    )
    descriptions = [new_network(network, blank, Runtime()).description for network in NETWORKS]
    counts = {part: sum(one.part == part for one in models) for part in get_args(Part)}
    told = (
        f"{name}: {' and '.join(short_name(network) for network in NETWORKS)}, {kind.size} training images,"
        f" {kind.recipe.epochs} epochs; {counts['weights']} models for the weights, {counts['ranks']} clean ones to"
        f" rank among, {counts['held-out']} held out"
    )
    return table_of(told, descriptions, kind.clean_size, kind.detectors, models, RATE)


def main() -> None:
    """Do what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, help="instead of the kind's own")
    parser.add_argument("--work", type=Path, default=Path("build/zoo"), help="models and scans")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the tables")
    arguments = parser.parse_args()
    lines = read_lines()
    for name in [] if arguments.table else arguments.kinds:
        made = work(name, KINDS[name], arguments)
        lines = [line for line in read_lines() if line["kind"] != name] + made
        write_bytes(ROWS, b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    tables, pages = [], []
    for name, kind in KINDS.items():
        of_kind = [line for line in lines if line["kind"] == name]
        try:
            table, ways = table_of_kind(name, kind, of_kind)
        except (InputError, IndexError) as error:
            print(f"{name}: no table, {error}")
            continue
        tables.append(table)
        pages.append(page(name, table, ways, of_kind))
    if tables:
        made_by = {"made_by": "benchmarks/zoo.py", "date": datetime.now(UTC).date().isoformat()}
        write_json(SHIPPED, {"format": FORMAT, **made_by, "tables": [table.to_json() for table in tables]})
        TABLE.write_text("\n\n".join([HEAD, *pages]) + "\n")
        print(TABLE)


def read_lines() -> list[dict[str, Any]]:
    """Return what was measured before."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


HEAD = f"""# The verdict

Made by `python benchmarks/zoo.py`. Half of the attacks (by the hash of their names) and every second seed are held out:
no weight and no threshold has seen them. An attack counts as backdoored from an ASR of 50 % on. "Verdict" weighs all
numbers; each of the other lines ranks one number alone among the same clean models, so that all have the same rate of
false alarms, {100 * RATE:g} %. Bounds: one-sided, 95 %, Clopper and Pearson. AUROC is over held-out models."""


def page(name: str, table: Table, ways: Sequence[Judged], lines: Sequence[dict[str, Any]]) -> str:
    """Return how a kind's table does, as Markdown."""
    rows = [line["row"] for line in lines]
    failed = sorted({row["attack"] for row in rows if row.get("backdoored", 0) is None})
    refused = sorted({row["attack"] for row in rows if "refused" in row})
    seconds = [sum(scan.get("seconds", 0) for scan in line["scans"]) for line in lines if line["scans"]]
    clean = [row["acc"] for row in rows if row.get("backdoored") is False]
    success = [row["asr"] for row in rows if row.get("backdoored")]
    out = [
        f"## {name}",
        "",
        f"{table.name}. {table.clean_size} clean images a scan.",
        "",
        f"Machine: {lines[0]['device']}, {lines[0]['threads']} threads, torch {lines[0]['torch']}. A scan by all"
        f" detectors takes {statistics.median(seconds):.1f} s (median; at most {max(seconds):.1f} s). ACC of clean"
        f" models {100 * statistics.mean(clean):.1f} %, ASR of backdoored ones {100 * statistics.mean(success):.1f} %"
        " (means)."
        + (f" Attacks of which no backdoor came, at least once: {', '.join(failed)}." if failed else "")
        + (f" Attacks that refused these images: {', '.join(refused)}." if refused else ""),
        "",
        "| way | weight | AUROC | found | at least % | false alarms | at most % | right target |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    weights = {f"{one.detector}: {one.number}": one.weight for one in table.measures}
    for way in ways:
        held = way.held_out
        weight = f"{weights[way.name]:.2f}" if way.name in weights else ""
        cells = [
            *(way.name, weight, f"{way.auroc:.3f}"),
            *(f"{held.found} of {held.backdoored}", f"{100 * way.lowest_true:.1f}"),
            *(f"{held.alarms} of {held.clean}", f"{100 * way.highest_false:.1f}"),
            f"{held.right_target} of {held.single_target}",
        ]
        out.append(f"| {' | '.join(cells)} |")
    out += ["", "| held-out attack | found by the verdict |", "|---|---:|"]
    out += [f"| {attack} | {found} of {there} |" for attack, (found, there) in ways[0].by_attack.items()]
    return "\n".join(out)


if __name__ == "__main__":
    main()
