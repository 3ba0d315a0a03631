"""How long the full published protocol would take: 3 data sets x 8 attacks x 3 rates x 14 defences x 3 seeds.

Nothing is trained here. The cells of results/main_job.jsonl say how much work a victim and a repair are, counted in
training steps of one image, by the speed of the bare step in results/training_speed.json. The same count at another
speed is the time on another machine. The cells are then handed out as the bench does it, a victim before what needs it.
Writes results/scale.md, which says what of it was measured and what is assumed.

    python benchmarks/scale.py
    python benchmarks/scale.py --gpu-factor 300     # another assumption, not written

How many times as fast a GPU takes a bare step as the machine of training_speed.json is one number, `GPU_FACTOR`. It is
an assumption until results/training_speed-cuda.json is there, which `training_speed.py --device cuda` writes.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from record import HERE, Rows

from unbackdoor.bench.cell import Cell, Domain, Result
from unbackdoor.bench.located import Located
from unbackdoor.bench.queue import Queue
from unbackdoor.training import Recipe, Runtime

RESULTS = HERE / "results"
ATTACKS, RATES, DEFENCES, SEEDS = 8, 3, 14, 3
WIDTH, MEASURED_WIDTH = 64, 16
KINDS = ("victim", "FTSAM", "SAU")
"""What was measured."""

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


PROTOCOL = {
    "CIFAR-10": Data(50_000, 32, 100, {"FTSAM": 100, "SAU": 100}),
    "GTSRB": Data(39_209, 32, 50, {"FTSAM": 50, "SAU": 100}),
    "Tiny-ImageNet": Data(100_000, 64, 200, {"FTSAM": 100, "SAU": 20}),
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
            # Of the defences that were not measured, each is taken for one of those that were.
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


def schedule(cells: Sequence[tuple[Cell, float]], machines: int, overhead: float) -> float:
    """Return the seconds until all cells are done.

    Args:
        cells: with the seconds of each.
        machines: how many do one cell at a time.
        overhead: seconds of the one process that hands out a cell and takes in its result, one after another.
    """
    seconds = {cell.key: took for cell, took in cells}
    queue = Queue([cell for cell, _ in cells], frozenset())
    running: list[tuple[float, int, Cell]] = []
    now, order = 0.0, itertools.count()
    while queue or running:
        while queue and len(running) < machines:
            cell = queue.take()
            now += overhead
            heapq.heappush(running, (now + seconds[cell.key], next(order), cell))
        ended, _, cell = heapq.heappop(running)
        now = max(now, ended)
        queue.finish(cell)
    return now


def chain(cells: Sequence[tuple[Cell, float]]) -> float:
    """Return the longest victim and repair: no number of machines is faster."""
    seconds = {cell.key: took for cell, took in cells}
    return max(took + seconds.get(cell.needed, 0.0) for cell, took in cells)


def measured_steps() -> tuple[dict[str, float], str]:
    """Return the training steps of one image of a round, by kind, and the machine.

    Rows that others disturbed are left out: there the clock and the processor's time differ.
    """
    speeds = json.loads((RESULTS / "training_speed.json").read_text())
    bare = {row["width"]: row["images_per_second"]["bare"] for row in speeds["rows"]}[MEASURED_WIDTH]
    rounds = defaultdict(list)
    for row in Rows(RESULTS / "main_job.jsonl").read():
        alone = row["seconds"] * int(row["threads"]) < ALONE * row["cpu_seconds"]
        if alone and not row.get("resumed") and row["job"] in KINDS:
            if row["device"] != speeds["machine"]["device"]:
                raise SystemExit(f"a cell ran on {row['device']}, the speed is that of {speeds['machine']['device']}")
            rounds[row["job"]].append(row["seconds"] / row["rounds"] * bare)
    return {kind: statistics.median(rounds[kind]) for kind in KINDS}, speeds["machine"]["device"]


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
    gpu = (
        f"measured: {found[0].value:,.0f} images/s on {found[0].name} (`training_speed.py --device cuda`)"
        if found[0].measured
        else f"**assumed**: `GPU_FACTOR` = {GPU_FACTOR:g} times that processor, and between 1/{UNCERTAIN:g} and"
        f" {UNCERTAIN:g} times of it; no GPU has been measured"
    )
    rows = {
        "steps of one image in a round of CIFAR-10": f"measured on {where}: {measured} (`main_job.py`)",
        "speed of the processor, by which steps are counted": f"measured on {where}: {processor():.0f} images/s at"
        f" width {WIDTH} (`training_speed.py`)",
        "speed of a GPU": gpu,
        "the one process that hands cells out": f"measured on {where}: {overhead:g} s a cell (`bench_overhead.py`)",
        "rounds of victims and repairs, numbers of cells": "published protocols",
        "networks of another width": f"**assumed** to take as many of their own steps; counted at {MEASURED_WIDTH}",
        "repairs that were not measured": "**assumed** to cost what FT-SAM or SAU do, half of them each",
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
        hours = [schedule(timed, count, overhead) / 3600 for count in MACHINES]
        lines.append(f"| {speed.name} | {' | '.join(f'{one:.3g}' for one in hours)} | {chain(timed) / 3600:.3g} |")
    return [*lines, ""]


def share(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.0f} %"


if __name__ == "__main__":
    main()
