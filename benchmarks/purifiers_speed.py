"""Purifiers, each beside a plain one that takes the same steps as published code takes them (see `naive/`).

All but Auto, D-BR, MESA and PixelSpace.

On one kept victim, with the same short schedule, in turns, each run in a process of its own:

    python benchmarks/purifiers_speed.py --data ../shared/data/cifar10
    python benchmarks/purifiers_speed.py --only NPD
    python benchmarks/purifiers_speed.py --table                    # only write the table

Writes one line of JSON a method to results/purifiers_speed.jsonl and the table results/purifiers_speed.md. A method
that is finished with the same schedule is not measured again. Reading data and models, and measuring the repaired ones,
are on neither clock.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from naive import purify
from record import HERE, Rows, machines, measured

from unbackdoor.attacks import BadNets, load_attack
from unbackdoor.bench.worker import Device, forget_peaks, peaks
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.evaluate import evaluate
from unbackdoor.models import Network, load_model
from unbackdoor.options import options_of, revision_of
from unbackdoor.purify import (
    ANP,
    BNP,
    CLP,
    EP,
    FP,
    FT,
    FTSAM,
    IBAU,
    MCR,
    NAD,
    NPD,
    RNP,
    SAU,
    TSBD,
    FTInit,
    NCUnlearning,
    Purifier,
)
from unbackdoor.training import Runtime

VICTIM = HERE / "victims" / "BadNets-0.safetensors"
CLEAN_SIZE = 2500
SEEDS = (0, 1, 2)
"""Of clean samples and of everything that is drawn; one turn each."""

METHODS: tuple[Purifier, ...] = (
    FT(epochs=6),
    FTInit(epochs=6),
    FTSAM(epochs=3),
    NAD(teacher_epochs=2, epochs=2),
    MCR(end_epochs=3, epochs=3),
    IBAU(rounds=1),
    SAU(rounds=1),
    NPD(warm_up_epochs=1, epochs=5),
    ANP(iterations=96),
    RNP(unlearning_epochs=3, unlearned=0.0, epochs=4),
    TSBD(unlearning_epochs=4, epochs=2),
    NCUnlearning(rounds=40, epochs=4),
    CLP(),
    BNP(),
    EP(),
    FP(epochs=6),
)
"""With schedules that take about ten seconds, so that what is done once does not count for much. RNP's unlearning does
not end early, so that both do as many epochs."""

AIMS = {"NPD": 6.0, "TSBD": 6.0, "ANP": 6.0}
AIM = 3.0
"""How many times as fast ours is to be, of those that `AIMS` does not name."""


def run(
    method: Purifier,
    plain: bool,
    seed: int,
    clean: ImageSet,
    test: ImageSet,
    device: Device,
    threads: int,
    untrusted: ImageSet | None = None,
) -> dict[str, Any]:
    """Repair once and measure; called in a process of its own.

    Args:
        method: ours, with its schedule.
        plain: whether the plain one runs instead.
        seed: of everything that is drawn.
        clean: samples.
        test: images, only to measure.
        device: to compute on.
        threads: of the processor.
        untrusted: the training data as found, for a method that needs them.
    """
    runtime = Runtime(device=device, threads=threads, seed=seed)
    told = runtime.describe()
    model = load_model(VICTIM).network.float()
    _warm_up(model, clean, runtime)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forget_peaks()
    others, notes = 0.0, ()
    with measured() as cost:
        if plain:
            repaired, others = purify(method, model, clean, seed, runtime.place, untrusted)
        else:
            repaired, history = method.purify(model, DefenderData(clean=clean, untrusted=untrusted), runtime)
            notes = history.notes
        if runtime.place.type == "cuda":
            torch.cuda.synchronize()
    found = {**peaks(), "before_mb": before // 1024, **cost.to_metrics(), "others": round(others, 2), "notes": notes}
    attack = load_attack(VICTIM.with_suffix(".attack.safetensors"))
    shares = evaluate(repaired, test, runtime, attack.trigger, attack.criterion)
    assert shares.asr is not None
    return {**found, "acc": shares.acc.value, "asr": shares.asr.value, "machine": told}


def _warm_up(model: Network, clean: ImageSet, runtime: Runtime) -> None:
    """Run both kinds of arithmetic once: what libraries do at their first call is on neither clock."""
    images = clean.images[:8].float().to(runtime.place) / 255
    model.to(runtime.place)
    model(images)
    with runtime.autocast():
        model(images)


class Bench:
    """The data and where results go.

    Args:
        data: CIFAR-10.
        device: to compute on.
        threads: of the processor.
    """

    def __init__(self, data: Path, device: Device, threads: int) -> None:
        self.data, self.device, self.threads = data, device, threads
        name = "purifiers_speed" if device == "cpu" else f"purifiers_speed_{device}"
        self.rows, self.table = Rows(HERE / "results" / f"{name}.jsonl"), HERE / "results" / f"{name}.md"

    def done(self) -> list[dict[str, Any]]:
        """Return the newest row of each method with its present schedule, in their order."""
        rows = {(row["method"], repr(row["options"]), row.get("revision", 0)): row for row in self.rows.read()}
        wanted = [(type(method).__name__, repr(options_of(method)), method.revision) for method in METHODS]
        return [rows[key] for key in wanted if key in rows]

    def measure(self, methods: Sequence[Purifier]) -> None:
        """Measure these methods, ours and the plain one in turns."""
        train, test = read_images(self.data, "train"), read_images(self.data, "test")
        # What the victim was trained on.
        poisoned = BadNets().prepare(train, lambda: load_model(VICTIM).network, Runtime(seed=0)).train
        for method in methods:
            untrusted = poisoned if "untrusted" in method.needs else None
            found: dict[str, list[dict[str, Any]]] = {"ours": [], "naive": []}
            for seed in SEEDS:
                clean = draw_clean(train, CLEAN_SIZE, seed)
                for side, results in found.items():
                    results.append(self._run(method, side == "naive", seed, clean, test, untrusted))
                    print(type(method).__name__, side, seed, f"{results[-1]['seconds']} s", flush=True)
            machine = found["ours"][0]["machine"]
            row = {name: machine[name] for name in ("device", "threads", "unbackdoor", "torch", "python")}
            row |= {"method": type(method).__name__, "options": options_of(method), "seeds": SEEDS}
            row |= revision_of(method)
            for side, results in found.items():
                row[side] = [{name: one[name] for name in one if name != "machine"} for one in results]
            self.rows.append(row)
            self.write()

    def _run(
        self, method: Purifier, plain: bool, seed: int, clean: ImageSet, test: ImageSet, untrusted: ImageSet | None
    ) -> dict[str, Any]:
        # A process of its own: the peak of memory is this run's alone.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            machine = (self.device, self.threads)
            return pool.submit(run, method, plain, seed, clean, test, *machine, untrusted).result()

    def write(self) -> None:
        """Write the table."""
        self.table.write_text(written(self.done()))


def main() -> None:
    """Measure the methods that are missing."""
    names = [type(method).__name__ for method in METHODS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=names, metavar="METHOD", help=f"one of {', '.join(names)}")
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    bench = Bench(arguments.data, arguments.device, arguments.threads)
    if not arguments.table:
        finished = {row["method"] for row in bench.done()}
        wanted = [arguments.only] if arguments.only else names
        left = [method for method in METHODS if type(method).__name__ in set(wanted) - finished]
        if left:
            bench.measure(left)
    bench.write()
    print(bench.table)


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the methods as Markdown."""
    lines = [
        "# Speed of the purifiers",
        "",
        "Made by `python benchmarks/purifiers_speed.py`: each purifier beside a plain one (`benchmarks/naive/`:"
        " float32, NCHW, one PIL image at a time, the passes of published code, no looking at test data in between)"
        f" with the same short schedule, on {VICTIM.stem} (PreActResNet18 of width 16) with {CLEAN_SIZE}"
        f" clean images; {len(rows)} of {len(METHODS)} methods are measured. Ours and the plain one took turns, one a"
        f" seed ({', '.join(map(str, SEEDS))}), each in a process of its own. Seconds are means of the wall clock; CPU"
        " seconds tell whether a row was disturbed: undisturbed, they are close to twice as many on two threads. ACC"
        " and ASR are those after the short schedule, no measure of how good a method is: mean, and least to largest"
        " over the seeds. They are alike if their means differ by no more than the wider of the two spreads. Peak MB is"
        " the whole process with libraries, at most.",
        "",
        "Published code of TSBD fine-tunes for every share n of the neurons, ours for the one that clean samples"
        " choose; the second line counts the plain one's fine-tuning for that n only.",
        "",
        *machines(list(rows)),
        "",
        "| method | schedule | seconds, ours | naive | CPU seconds, ours | naive | ratio | aim | reached"
        " | peak MB, ours | naive |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    for row in rows:
        lines += _speeds(row)
    lines += ["", "| method | ACC %, ours | naive | ASR %, ours | naive | alike |", "|---|---:|---:|---:|---:|---|"]
    lines += [_shares(row) for row in rows]
    return "\n".join(lines) + "\n"


def _speeds(row: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one method: all work, and without what ours does not owe where there is any."""
    others = [one["others"] for one in row["naive"]]
    for name, less in ((row["method"], 0.0), (f"{row['method']}, one n", statistics.mean(others))):
        if name != row["method"] and not less:
            continue
        ours, naive = _mean(row, "ours", "seconds"), _mean(row, "naive", "seconds") - less
        aim = AIMS.get(row["method"], AIM)
        busy = [_mean(row, side, "cpu_seconds") for side in ("ours", "naive")]
        fields = [
            *(name, _schedule(row), f"{ours:.1f}", f"{naive:.1f}", f"{busy[0]:.1f}", "" if less else f"{busy[1]:.1f}"),
            *(f"{naive / ours:.2f}", f"{aim:g}", "yes" if naive / ours >= aim else "no"),
            *(f"{max(one.get('peak_mb', 0) for one in row[side]):.0f}" for side in ("ours", "naive")),
        ]
        yield f"| {' | '.join(fields)} |"


def _schedule(row: dict[str, Any]) -> str:
    """Return the options that say how long the method ran."""
    method = next(one for one in METHODS if type(one).__name__ == row["method"])
    usual = options_of(type(method)())
    changed = {name: value for name, value in row["options"].items() if value != usual[name]}
    return ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "as it is"


def _shares(row: dict[str, Any]) -> str:
    """Return the line with what the repaired models are worth."""
    fields, alike = [row["method"]], True
    for name in ("acc", "asr"):
        values = [[100 * one[name] for one in row[side]] for side in ("ours", "naive")]
        fields += [f"{statistics.mean(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in values]
        spread = max(max(one) - min(one) for one in values)
        # Rounding is no difference.
        alike = alike and abs(statistics.mean(values[0]) - statistics.mean(values[1])) <= spread + 1e-9
    return f"| {' | '.join([*fields, 'yes' if alike else 'no'])} |"


def _mean(row: dict[str, Any], side: str, name: str) -> float:
    return statistics.mean(one[name] for one in row[side])


if __name__ == "__main__":
    main()
