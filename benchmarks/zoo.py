"""The calibration of the verdict: zoos of small models, scans, tables, and a judgement on what was held out.

Writes zoo and scans to --work, one line a model and number of clean images to results/zoo.jsonl, the judgement to
results/zoo.md, and the tables to the package (scan/calibration.json). Nothing is done twice, even where --work is gone:
models of the same making that all detectors have looked at are taken from results/zoo.jsonl. An interrupted model goes
on, and the same command on several cores shares the work; started once more at the end, it collects what all have done:

    python benchmarks/zoo.py --data ../shared/data --kinds cifar10 --threads 1 &
    python benchmarks/zoo.py --data ../shared/data --kinds cifar10 --threads 1
    python benchmarks/zoo.py --kinds cifar10 --table          # only tables and judgement, from results/zoo.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from record import HERE

from unbackdoor.attacks import ATTACKS
from unbackdoor.bench.calibrate import tables_of, told_of
from unbackdoor.bench.judge import RATE, Judged
from unbackdoor.bench.zoo import INDEX, NETWORKS, QUICK, append, fill, plan, rows_of, ways_of
from unbackdoor.bench.zoo_scans import SCANS, Scanned, looked_at, scan_key, scan_zoo, usable_of
from unbackdoor.conformal import allowed_above
from unbackdoor.data import read_images
from unbackdoor.errors import InputError
from unbackdoor.files import write_bytes
from unbackdoor.scan.calibration import Table
from unbackdoor.scan.calibration_file import SHIPPED, write_tables
from unbackdoor.scan.verdict import DETECTORS
from unbackdoor.training import Recipe, Runtime, architecture_of

ROWS, TABLE = HERE / "results" / "zoo.jsonl", HERE / "results" / "zoo.md"
TOGETHER = 2
"""Models that are made before the detectors look at them, so that little is lost where a folder is."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of model.

    Attributes:
        source: of its images, a folder of --data, or "digits".
        size: training images of a model.
        recipe: how models are trained.
        clean_sizes: clean images that the detectors get, a table for each.
        rounds: of the zoo, half of which are held out; each network needs 19 clean models to compare with.
        attacks: names; those that train networks of their own before the victim take longer.
    """

    source: str
    size: int
    recipe: Recipe
    rounds: int
    clean_sizes: tuple[int, ...] = (50,)
    attacks: tuple[str, ...] = tuple(sorted(ATTACKS))


KINDS = {
    "digits": Kind(
        source="digits",
        # All but those that are kept back for the scans, and a few.
        size=1100,
        # At full resolution, and images as they are: eight epochs at three quarters of it left no backdoor after most
        # attacks, and shifted images none of BPP and WaNet. Chosen by the success of attacks, before any scan.
        recipe=Recipe(epochs=20, batch_size=64, learning_rate=0.1, augmentation="none", low_resolution=0.0),
        rounds=15,
        attacks=(
            *("AdaptiveBlend", "AdaptivePatch", "BadNets", "CTRL", "FTrojan", "Refool", "TaCT"),
            *("BPP", "Blended", "MESAPatch", "SIG", "Smooth", "WaNet"),
        ),
    ),
    "cifar10": Kind(
        source="cifar10",
        size=10_000,
        recipe=QUICK,
        rounds=26,
        # A model of each was made first, and none was scanned. Left out are those of which no backdoor came of so few
        # images and epochs (AdaptiveBlend, AdaptivePatch, BPP, CTRL, FTrojan, MESAPatch, TaCT, WaNet) or hardly one
        # (LabelConsistent, ASR 55 %), and those that train further networks for long (AdaptiveTrap, Blind, InputAware,
        # LIRA).
        attacks=(
            *("BadNets", "LF", "Refool", "SSBA"),
            *("Blended", "Invisible", "SIG", "Smooth", "TrojanNN"),
        ),
    ),
    "gtsrb": Kind(source="gtsrb", size=12_000, recipe=replace(QUICK, augmentation="crop"), rounds=20),
}


def work(name: str, kind: Kind, arguments: argparse.Namespace) -> None:
    """Make the zoo of a kind and let the detectors look at it; what is there is written after every few models."""
    source = "digits" if kind.source == "digits" else str(arguments.data / kind.source)
    train, test = read_images(source, "train"), read_images(source, "test")
    runtime = Runtime(device=arguments.device, threads=arguments.threads)
    planned = plan(name, kind.attacks, arguments.rounds or kind.rounds)
    # A network's table needs all of its models, and no others.
    entries = sorted(planned, key=lambda entry: entry.network)
    ways = ways_of(entries, train, kind.size, kind.recipe, runtime)
    restore(arguments.work, [line for line in read_lines() if line["kind"] == name], ways, kind.clean_sizes)
    device = {name: value for name, value in runtime.describe().items() if name in ("device", "threads", "torch")}
    facts = {"kind": name, "classes": list(train.class_names), "shape": list(train.shape), **device}
    for start in range(0, len(entries), TOGETHER):
        some = entries[start : start + TOGETHER]
        rows = fill(arguments.work, some, train, test, kind.size, kind.recipe, runtime)
        for size in kind.clean_sizes:
            scan_zoo(arguments.work, rows, NETWORKS, train, DETECTORS, size, runtime)
        done = [row for row in rows_of(arguments.work / INDEX) if row["key"] in ways]
        write_lines(name, facts, done, kind.clean_sizes, arguments.work)


def restore(
    out: Path, lines: Sequence[dict[str, Any]], ways: Mapping[str, Mapping[str, Any]], sizes: Sequence[int]
) -> None:
    """Put back into a zoo's folder what lines of before say of models that need not be made again.

    Those are the ones that all detectors have looked at, and the attacks of which no backdoor or no model came.
    """
    out.mkdir(parents=True, exist_ok=True)
    by_key: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        by_key.setdefault(line["row"]["key"], []).append(line)
    with FileLock(out / "restore.lock"):
        known = {row["key"] for row in rows_of(out / INDEX)}
        for key, some in by_key.items():
            row = some[0]["row"]
            if key in known or row["made"] != ways.get(key):
                continue
            scans = {scan["key"]: scan for line in some for scan in line["scans"]}
            needed = [scan_key(row, one, size) for one in DETECTORS for size in sizes if usable_of([row])]
            if set(needed) <= set(scans):
                for scan in needed:
                    append(out / SCANS, scans[scan])
                append(out / INDEX, row)


def write_lines(
    name: str, facts: Mapping[str, Any], rows: Sequence[dict[str, Any]], sizes: Sequence[int], out: Path
) -> None:
    """Write a line for each model of a kind and number of clean images, in place of those of before."""
    lines = [
        {**facts, "clean_size": size, "row": row, "scans": scans}
        for size in sizes
        for row, scans in looked_at(out, rows, DETECTORS, size)
    ]
    # Attacks that failed, and models that could not be made, are told of as well.
    lines += [{**facts, "row": row, "scans": []} for row in rows if not usable_of([row])]
    others = [line for line in read_lines() if line["kind"] != name]
    write_bytes(ROWS, b"".join(json.dumps(line).encode() + b"\n" for line in [*others, *lines]))


def calibrate(name: str, lines: Sequence[dict[str, Any]], clean_size: int) -> tuple[list[Table], list[Judged]]:
    """Return the calibration tables of a kind for so many clean images, and how they do."""
    some = [line for line in lines if line["scans"] and line["clean_size"] == clean_size]
    # Lines of before may lack a detector, or have one with other options or of another revision.
    keys = [{scan["key"]: scan for scan in line["scans"]} for line in some]
    detectors = [
        one for one in DETECTORS if all(scan_key(line["row"], one, clean_size) in of for line, of in zip(some, keys))
    ]
    models = [
        Scanned.of(line["row"], [of[scan_key(line["row"], one, clean_size)] for one in detectors])
        for line, of in zip(some, keys)
    ]
    made, classes, shape = some[0]["row"]["made"], some[0]["classes"], some[0]["shape"]
    sides = (shape[0], shape[1], shape[2])
    # A network of which too few models are there yet is left out, so that it does not raise the rate of the others.
    clean = Counter(model.network for model in models if model.part == "reference")
    networks = [network for network in NETWORKS if allowed_above(RATE, clean[architecture_of(network)])]
    models = [model for model in models if model.network in map(architecture_of, networks)]
    if not networks:
        raise InputError("no network has clean models enough yet")
    return tables_of(told_of(made), name, classes, sides, networks, clean_size, made["precision"], detectors, models)


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
    for name in [] if arguments.table else arguments.kinds:
        work(name, KINDS[name], arguments)
    lines = read_lines()
    tables, pages = [], []
    for name in KINDS:
        of_kind = [line for line in lines if line["kind"] == name]
        for size in sorted({line["clean_size"] for line in of_kind if line["scans"]}):
            try:
                made, ways = calibrate(name, of_kind, size)
            except InputError as error:
                print(f"{name}, {size} clean images: no table, {error}")
                continue
            tables += made
            pages.append(page(name, size, made, ways, of_kind))
    if tables:
        write_tables(SHIPPED, tables, made_by="benchmarks/zoo.py", date=datetime.now(UTC).date().isoformat())
        TABLE.write_text("\n\n".join([HEAD, *pages]) + "\n")
        print(TABLE)


def read_lines() -> list[dict[str, Any]]:
    """Return what was measured before."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


HEAD = """# The verdict

Made by `python benchmarks/zoo.py`. Half of the attacks (by the hash of their names) and every second seed are held
out: nothing that is usual and no threshold comes from them. The options of the detectors themselves were set before,
looking at planted models and at models of other attacks, but those of FourierProbes at twelve of SIG, TrojanNN and
Blended, which are held out here, of other seeds; whether some models of digits that were looked at are held out here
was not recorded. An attack counts as backdoored from an ASR of 50 % on. A model is compared with clean ones of its own
network. "Verdict" adds up what all detectors say; each of the next lines compares what one of them says, so that all
have the same rate of false alarms; the last lines are what each detector says by its own threshold, at whatever rate
that has. "NeuralCleanse" is the verdict's own short search (90 steps of 16 images), not the scanner's 800 of 32.
Bounds: one-sided, 95 %, Clopper and Pearson. AUROC is over the held-out models of all networks together. How numbers
are compared was changed three times after a look at held-out models, see docs/methods/verdict.md."""


def page(name: str, size: int, tables: Sequence[Table], ways: Sequence[Judged], lines: Sequence[dict[str, Any]]) -> str:
    """Return how a kind's tables for so many clean images do, as Markdown."""
    lines = [line for line in lines if line["row"]["network"] in {table.architecture for table in tables}]
    rows = {line["row"]["key"]: line["row"] for line in lines}.values()
    failed = sorted({row["attack"] for row in rows if "refused" not in row and row["backdoored"] is None})
    refused = sorted({row["attack"] or "clean" for row in rows if "refused" in row})
    heard = {type(one).__name__ for one in tables[0].detectors}
    seconds = [
        sum(scan.get("seconds", 0) for scan in line["scans"] if scan["detector"] in heard)
        for line in lines
        if line["scans"] and line["clean_size"] == size
    ]
    clean = [row["acc"] for row in rows if row.get("backdoored") is False]
    success = [row["asr"] for row in rows if row.get("backdoored")]
    out = [
        f"## {name}, {size} clean images a scan",
        "",
        f"At a rate of false alarms of {100 * tables[0].rate:.3g} %, the smallest from 5 % on that the clean models"
        f" allow. Verdict on each network's held-out models: {'; '.join(map(_told, tables))}.",
        "",
        f"Machine: {lines[0]['device']}, {lines[0]['threads']} threads, torch {lines[0]['torch']}. A scan by all"
        f" detectors takes {statistics.median(seconds):.1f} s (median; at most {max(seconds):.1f} s). ACC of clean"
        f" models {100 * statistics.mean(clean):.1f} %, ASR of backdoored ones {100 * statistics.mean(success):.1f} %"
        " (means)."
        + (f" Attacks of which no backdoor came, at least once: {', '.join(failed)}." if failed else "")
        + (f" Of which no model came, at least once: {', '.join(refused)}." if refused else ""),
        "",
        "| way | AUROC | found | at least % | false alarms | at most % | right target |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for way in ways:
        held = way.held_out
        cells = [
            *(way.name, f"{way.auroc:.3f}"),
            *(f"{held.found} of {held.backdoored}", f"{100 * way.lowest_true:.1f}"),
            *(f"{held.alarms} of {held.clean}", f"{100 * way.highest_false:.1f}"),
            f"{held.right_target} of {held.single_target}",
        ]
        out.append(f"| {' | '.join(cells)} |")
    out += ["", "| held-out attack | found by the verdict |", "|---|---:|"]
    out += [f"| {attack} | {found} of {there} |" for attack, (found, there) in ways[0].by_attack.items()]
    return "\n".join(out)


def _told(table: Table) -> str:
    held = table.held_out
    return (
        f"{table.name}: {held.found} of {held.backdoored} backdoored found, {held.alarms} of {held.clean} clean accused"
    )


if __name__ == "__main__":
    main()
