"""How long the full published protocol would take: 3 data sets x 8 attacks x 3 rates x 14 defences x 3 seeds.

Nothing is trained here. The cells of results/main_job.jsonl say how much work a victim and a repair are, counted in
training steps of one image, by the speed of the bare step in results/training_speed.json. The same count at another
speed is the time on another machine. results/training_speed-cuda.json has the speed of a GPU once that was measured;
until then the speeds are assumptions, and the table says so. The cells are then handed out as the bench does it, a
victim before what needs it. Writes results/scale.md.

    python benchmarks/scale.py
"""

from __future__ import annotations

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
WIDTH = 64
KINDS = ("victim", "FTSAM", "SAU")
"""What was measured."""

ALONE = 1.05
"""Times the processor's time that the clock may show."""

MACHINES = (1, 8, 64, 512)
ASSUMED = (5_000, 20_000, 80_000)
"""Images/s of the bare step at full width, where no GPU was measured."""


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
    bare = {row["width"]: row["images_per_second"]["bare"] for row in speeds["rows"]}[16]
    rounds = defaultdict(list)
    for row in Rows(RESULTS / "main_job.jsonl").read():
        alone = row["seconds"] * int(row["threads"]) < ALONE * row["cpu_seconds"]
        if alone and not row.get("resumed") and row["job"] in KINDS:
            if row["device"] != speeds["machine"]["device"]:
                raise SystemExit(f"a cell ran on {row['device']}, the speed is that of {speeds['machine']['device']}")
            rounds[row["job"]].append(row["seconds"] / row["rounds"] * bare)
    return {kind: statistics.median(rounds[kind]) for kind in KINDS}, speeds["machine"]["device"]


def speeds() -> tuple[dict[str, float], str]:
    """Return images/s of the bare step at full width, by what has it, and what to think of it."""
    path = RESULTS / "training_speed-cuda.json"
    if path.exists():
        found = json.loads(path.read_text())
        row = next(row for row in found["rows"] if row["width"] == WIDTH)
        bare = float(row["images_per_second"]["bare"])
        return {found["machine"]["device"]: bare}, f"{bare:,.0f} images/s, measured by `training_speed.py`."
    sentence = "**Assumed**, as no GPU has been measured: run `python benchmarks/training_speed.py --device cuda`."
    return {f"{speed:,} images/s": speed for speed in ASSUMED}, sentence


def main() -> None:
    """Write the table."""
    steps, where = measured_steps()
    overhead = json.loads((RESULTS / "bench_overhead.json").read_text())["a cell that does nothing, seconds"]
    named, sentence = speeds()
    lines = [
        "# The full published protocol",
        "",
        f"Made by `python benchmarks/scale.py` from `main_job.jsonl` (measured on {where}): {len(PROTOCOL)} data sets x"
        f" {ATTACKS} attacks x {RATES} rates x {DEFENCES} defences x {SEEDS} seeds, PreActResNet18 of width {WIDTH},"
        f" one cell a GPU at a time. Beside its steps a cell costs {overhead:g} s of the one process that hands cells"
        " out. What it costs to read, to measure on test images, to save and to compile is not in it. Attacks that"
        " search or train before they poison are taken to cost what the measured ones do, and defences what one of the"
        " measured ones does.",
        "",
        "One round, counted in training steps of one 32 x 32 image on CIFAR-10:",
        "",
        "| what | steps |",
        "|---|---:|",
        *(f"| {name} | {value:,.0f} |" for name, value in steps.items()),
        "",
        f"Speed of a GPU: {sentence}",
        "",
    ]
    for published in (False, True):
        lines += section(work(steps, published=published), named, overhead, published=published)
    (RESULTS / "scale.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def section(
    cells: list[tuple[Cell, float]], named: Mapping[str, float], overhead: float, *, published: bool
) -> list[str]:
    """Return what one way of training victims costs."""
    total = sum(took for _, took in cells)
    victims = sum(took for cell, took in cells if cell.kind == "victim")
    large = sum(took for cell, took in cells if cell.labels["data"] == "Tiny-ImageNet")
    alike = {str(cell.labels["like"]) for cell, _ in cells if cell.needs}
    repairs = {name: sum(took for cell, took in cells if cell.labels.get("like") == name) for name in sorted(alike)}
    own = (total + (DEFENCES - 1) * victims) / total
    lines = [
        f"## Victims trained {'as published (50 to 200 epochs)' if published else 'with our recipe'}",
        "",
        f"{sum(cell.kind == 'victim' for cell, _ in cells)} victims and"
        f" {sum(cell.kind != 'victim' for cell, _ in cells):,} repairs, {total / 1e9:,.2f} thousand million steps."
        f" Victims: {share(victims, total)};"
        f" {', '.join(f'defences like {name}: {share(took, total)}' for name, took in repairs.items())}. Tiny-ImageNet:"
        f" {share(large, total)}. If every defence trained its own victims, it would be {own:.1f} times as much.",
        "",
        f"| a GPU | {' | '.join(f'GPUs: {count}, h' for count in MACHINES)} | longest chain, h |",
        f"|---|{'---:|' * (len(MACHINES) + 1)}",
    ]
    for name, speed in named.items():
        timed = [(cell, took / speed) for cell, took in cells]
        hours = [schedule(timed, count, overhead) / 3600 for count in MACHINES]
        lines.append(f"| {name} | {' | '.join(f'{one:.3g}' for one in hours)} | {chain(timed) / 3600:.3g} |")
    return [*lines, ""]


def share(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole:.0f} %"


if __name__ == "__main__":
    main()
