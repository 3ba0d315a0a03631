"""How long the full published protocol would take: 3 data sets x 8 attacks x 3 rates x 14 defences x 3 seeds.

Nothing is trained here. The cells that other programs and grids have kept (results/main_job.jsonl, small/cells.csv,
purify-small.jsonl) say how much work a victim and a repair are, counted in training steps of one image, by the speed of
the bare step in results/training_speed.json. The same count at another speed is the time on another machine. The cells
are then handed out as the bench does it, a victim before what needs it. Writes results/scale.md, which says what of it
was measured and what is assumed.

    python benchmarks/scale.py
    python benchmarks/scale.py --gpu-factor 300     # another assumption, not written

How many times as fast a GPU takes a bare step as the machine of training_speed.json is one number, `GPU_FACTOR`. It is
an assumption until results/training_speed-cuda.json is there, which `training_speed.py --device cuda` writes.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from record import HERE, Rows

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.bench.plan import seconds_until_done
from unbackdoor.located import Located
from unbackdoor.training import Recipe, Runtime

RESULTS = HERE / "results"
ATTACKS, RATES, DEFENCES, SEEDS = 8, 3, 14, 3
WIDTH, MEASURED_WIDTH = 64, 16
KINDS = ("victim", "FT", "FTSAM", "SAU", "NPD", "TSBD")
"""What has a published number of rounds; those that there are cells of count."""

THREADS = 2
"""Of the cells whose rows do not say it."""

ALONE = 1.05
"""Times the processor's time that the clock may show."""

MACHINES = (1, 8, 64, 512)

GPU_FACTOR = 175.0
"""Assumed, not measured: how many times as many images a second a GPU takes through a bare training step of
PreActResNet18 at full width as the machine of training_speed.json (two cores, 115 images/s): some 20,000. Such a step
is 3.3 thousand million operations an image, so this is 67 TFLOP/s in bfloat16: a fifteenth to a fifth of what GPUs of
data centres have on paper (989 an H100, 312 an A100), of which small convolutions reach a small part."""

UNCERTAIN = 4.0
"""By how much the factor may be wrong either way: from a card that launches of small kernels hold back, to one that is
kept busy by compiled networks or several cells at a time."""


@dataclass(frozen=True)
class Data:
    """A data set of the protocol.

    Attributes:
        images: for training.
        side: pixels.
        epochs: of the published training of victims.
        schedule: of each measured defence, the published number of rounds.
    """

    images: int
    side: int
    epochs: int
    schedule: Mapping[str, int]

    @property
    def size(self) -> float:
        """Pixels of the training set, CIFAR-10's being 1."""
        return self.images * self.side**2 / (50_000 * 32**2)


FIXED = {"NPD": 50, "TSBD": 21}
"""Published for CIFAR-10, and taken for the others; TSBD's unlearning is in the time of its rounds."""

PROTOCOL = {
    "CIFAR-10": Data(50_000, 32, 100, {"FT": 100, "FTSAM": 100, "SAU": 100, **FIXED}),
    "GTSRB": Data(39_209, 32, 50, {"FT": 50, "FTSAM": 50, "SAU": 100, **FIXED}),
    "Tiny-ImageNet": Data(100_000, 64, 200, {"FT": 100, "FTSAM": 100, "SAU": 20, **FIXED}),
}


class Protocol(Domain):
    """Cells that only stand for their work."""

    def cells(self, grid: Located) -> list[Cell]:
        """Return no cell: they are made here."""
        return []

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Do nothing."""
        raise NotImplementedError


def work(steps: Mapping[str, float], *, published: bool) -> list[tuple[Cell, float]]:
    """Return the cells of the protocol, each with its training steps of one 32 x 32 image.

    Args:
        steps: of one round (an epoch of a victim) on CIFAR-10, by "victim" or the name of a defence.
        published: whether victims are trained as long as published; otherwise with our recipe.
    """
    domain, cells = Protocol(), []
    names = [name for name in steps if name != "victim"]
    for seed, (name, data), attack, rate in itertools.product(
        range(SEEDS), PROTOCOL.items(), range(ATTACKS), range(RATES)
    ):
        labels = {"data": name, "attack": attack, "rate": rate, "seed": seed}
        victim = Cell(domain=domain, kind="victim", labels=labels, recipe=labels, work=None)
        epochs = data.epochs * full_size() if published else Recipe().epochs
        cells.append((victim, steps["victim"] * epochs * data.size))
        for number in range(DEFENCES):
            # Those that were measured come first, once each; every other is taken for one of them.
            alike = names[number % len(names)]
            recipe = {**labels, "defence": number, "like": alike}
            repair = Cell(domain=domain, kind="purify", labels=recipe, recipe=recipe, work=None, needs=victim)
            cells.append((repair, steps[alike] * data.schedule[alike] * data.size))
    return cells


def full_size() -> float:
    """Return how much more an epoch costs at full resolution than the mean one of our recipe."""
    recipe = Recipe()
    small = recipe.low_resolution
    return 1 / (small * 0.75**2 + 1 - small)


def chain(cells: Sequence[tuple[Cell, float]]) -> float:
    """Return the longest victim and repair: no number of machines is faster."""
    seconds = {cell.key: took for cell, took in cells}
    return max(took + seconds.get(cell.needed, 0.0) for cell, took in cells)


@dataclass(frozen=True)
class Measured:
    """A cell that was done, undisturbed and in one go.

    Attributes:
        kind: one of `KINDS`.
        seconds: of a round.
        budgeted: whether it had a budget, in which a repair may take fewer and shorter rounds.
        device: on which.
    """

    kind: str
    seconds: float
    budgeted: bool
    device: str


def kept() -> Iterator[Measured]:
    """Yield the cells of `KINDS` that are kept in results/."""
    rows: list[dict[str, Any]] = [{**row, "kind": row["job"]} for row in Rows(RESULTS / "main_job.jsonl").read()]
    with (RESULTS / "small" / "cells.csv").open(newline="") as file:
        rows += [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    rows += Rows(RESULTS / "purify-small.jsonl").read()
    for row in rows:
        # A method's label has its options after its name.
        kind = str(row.get("method") or row["kind"]).split()[0]
        if kind in KINDS and not row.get("error") and not row.get("resumed"):
            seconds, threads = float(row["seconds"]), int(row.get("threads", THREADS))
            # Where others disturbed it, the clock and the processor's time differ.
            if seconds * threads < ALONE * float(row["cpu_seconds"]):
                budgeted = row.get("budget") not in (None, "none")
                yield Measured(kind, seconds / float(row["rounds"]), budgeted, row["device"])


def measured_steps() -> tuple[dict[str, float], str]:
    """Return the training steps of one image of a round, by kind, and the machine.

    Of what was measured without a budget that alone counts.
    """
    speeds = json.loads((RESULTS / "training_speed.json").read_text())
    bare = {row["width"]: row["images_per_second"]["bare"] for row in speeds["rows"]}[MEASURED_WIDTH]
    rounds: dict[str, dict[bool, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in kept():
        if one.device != speeds["machine"]["device"]:
            raise SystemExit(f"a cell ran on {one.device}, the speed is that of {speeds['machine']['device']}")
        rounds[one.kind][one.budgeted].append(one.seconds * bare)
    known = [kind for kind in KINDS if kind in rounds]
    steps = {kind: statistics.median(rounds[kind].get(False) or rounds[kind][True]) for kind in known}
    return steps, speeds["machine"]["device"]


@dataclass(frozen=True)
class Speed:
    """Images/s of the bare step at full width.

    Attributes:
        name: what has it.
        value: how many.
        measured: whether that was measured.
    """

    name: str
    value: float
    measured: bool


def speeds(factor: float) -> list[Speed]:
    """Return the measured speed of a GPU, or else the assumed one between the ends of its range."""
    path = RESULTS / "training_speed-cuda.json"
    if path.exists():
        found = json.loads(path.read_text())
        row = next(row for row in found["rows"] if row["width"] == WIDTH)
        return [Speed(found["machine"]["device"], float(row["images_per_second"]["bare"]), True)]
    named = {"slow end": factor / UNCERTAIN, "assumed": factor, "fast end": factor * UNCERTAIN}
    base = processor()
    return [Speed(f"{name}: {one:,.4g} x {base:.0f} images/s", one * base, False) for name, one in named.items()]


def processor() -> float:
    """Return the measured images/s of the bare step at full width on the processor."""
    rows = json.loads((RESULTS / "training_speed.json").read_text())["rows"]
    return float(next(row for row in rows if row["width"] == WIDTH)["images_per_second"]["bare"])


def provenance(steps: Mapping[str, float], where: str, overhead: float, found: Sequence[Speed]) -> list[str]:
    """Return a table of what goes into the hours, and where each of it is from."""
    measured = ", ".join(f"{name} {value:,.0f}" for name, value in steps.items())
    fixed = " and ".join(name for name in FIXED if name in steps)
    gpu = (
        f"measured: {found[0].value:,.0f} images/s on {found[0].name} (`training_speed.py --device cuda`)"
        if found[0].measured
        else f"**assumed**: `GPU_FACTOR` = {GPU_FACTOR:g} times that processor, and between 1/{UNCERTAIN:g} and"
        f" {UNCERTAIN:g} times of it; no GPU has been measured"
    )
    rows = {
        "steps of one image in a round of CIFAR-10": f"measured on {where}: {measured} (`main_job.py`, `small.yaml`,"
        f" `purify-small.yaml`, those of {fixed} within a budget)",
        "speed of the processor, by which steps are counted": f"measured on {where}: {processor():.0f} images/s at"
        f" width {WIDTH} (`training_speed.py`)",
        "speed of a GPU": gpu,
        "the one process that hands cells out": f"measured on {where}: {overhead:g} s a cell (`bench_overhead.py`)",
        "rounds of victims and of the other repairs, numbers of cells": "published protocols",
        "networks of another width": f"**assumed** to take as many of their own steps; counted at {MEASURED_WIDTH}",
        f"the {DEFENCES - len(steps) + 1} of {DEFENCES} repairs that were not measured": "**assumed** to cost what"
        " those that were do, each of these in turn",
        "rounds of FT": "**assumed**: those of FT-SAM",
        f"rounds of {fixed} on GTSRB and Tiny-ImageNet": "**assumed**: those of CIFAR-10",
        "attacks that search or train before they poison": "**assumed** to cost nothing beside their victim",
        "images of another size": "**assumed** to cost in proportion to their pixels",
        "reading, measuring, saving, compiling": "left out",
        "GPUs beside each other": "**assumed** not to hold each other up; one cell a GPU at a time",
    }
    return ["| what | where it is from |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows.items())]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-factor", type=float, help="another assumption; the table is shown and not written")
    arguments = parser.parse_args()
    text = written(arguments.gpu_factor or GPU_FACTOR)
    if arguments.gpu_factor is None:
        (RESULTS / "scale.md").write_text(text)
    print(text)


def written(factor: float) -> str:
    """Return the tables as Markdown."""
    steps, where = measured_steps()
    overhead = json.loads((RESULTS / "bench_overhead.json").read_text())["a cell that does nothing, seconds"]
    found = speeds(factor)
    lines = [
        "# The full published protocol",
        "",
        f"Made by `python benchmarks/scale.py`: {len(PROTOCOL)} data sets x {ATTACKS} attacks x {RATES} rates x"
        f" {DEFENCES} defences x {SEEDS} seeds, PreActResNet18 of width {WIDTH}.",
        "",
        *provenance(steps, where, overhead, found),
        "",
    ]
    for published in (False, True):
        lines += section(work(steps, published=published), found, overhead, published=published)
    return "\n".join(lines) + "\n"


def section(cells: list[tuple[Cell, float]], found: Sequence[Speed], overhead: float, *, published: bool) -> list[str]:
    """Return what one way of training victims costs."""
    total = sum(took for _, took in cells)
    victims = sum(took for cell, took in cells if cell.kind == "victim")
    large = sum(took for cell, took in cells if cell.labels["data"] == "Tiny-ImageNet")
    alike = {str(cell.labels["like"]) for cell, _ in cells if cell.needs}
    repairs = {name: sum(took for cell, took in cells if cell.labels.get("like") == name) for name in sorted(alike)}
    own = (total + (DEFENCES - 1) * victims) / total
    head = "a GPU" if found[0].measured else "a GPU (the hours follow from the assumption)"
    lines = [
        f"## Victims trained {'as published (50 to 200 epochs)' if published else 'with our recipe'}",
        "",
        f"{sum(cell.kind == 'victim' for cell, _ in cells)} victims and"
        f" {sum(cell.kind != 'victim' for cell, _ in cells):,} repairs, {total / 1e9:,.2f} thousand million steps."
        f" Victims: {share(victims, total)};"
        f" {', '.join(f'defences like {name}: {share(took, total)}' for name, took in repairs.items())}. Tiny-ImageNet:"
        f" {share(large, total)}. If every defence trained its own victims, it would be {own:.1f} times as much.",
        "",
        f"| {head} | {' | '.join(f'GPUs: {count}, h' for count in MACHINES)} | longest chain, h |",
        f"|---|{'---:|' * (len(MACHINES) + 1)}",
    ]
    for speed in found:
        timed = [(cell, took / speed.value) for cell, took in cells]
        hours = [seconds_until_done(timed, count, overhead) / 3600 for count in MACHINES]
        lines.append(f"| {speed.name} | {' | '.join(f'{one:.3g}' for one in hours)} | {chain(timed) / 3600:.3g} |")
    return [*lines, ""]


def share(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.0f} %"


if __name__ == "__main__":
    main()
