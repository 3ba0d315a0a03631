"""Every attack, measured: victims on CIFAR-10, GTSRB and Tiny-ImageNet.

Writes one line of JSON a finished victim to results/attacks.jsonl and the table results/attacks.md. The victims of the
eight standard attacks (CIFAR-10, seed 0) are kept in victims/ as float16, with their attack beside them. BadNets,
Blended, SIG and clean training on CIFAR-10 are those of `main_job.py`, which has to run first. Finished victims are
not trained again, and an interrupted one goes on:

    python benchmarks/attacks.py --data ../shared/data
    python benchmarks/attacks.py --data ../shared/data --width 64 --device cuda    # the papers' size
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines, measured, share

from unbackdoor.attacks import (
    ATTACKS,
    LF,
    SIG,
    Attack,
    BadNets,
    Blended,
    InputAware,
    Invisible,
    LabelConsistent,
    TrojanNN,
    WaNet,
    save_attack,
    stealth,
)
from unbackdoor.commands.workspace import remove_work
from unbackdoor.data import ImageSet, read_images
from unbackdoor.evaluate import evaluate, triggered_images
from unbackdoor.folder import RESUME
from unbackdoor.models import Network, save_model
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.options import options_of
from unbackdoor.training import Recipe, Runtime, fit, new_network

MAIN_JOB = Rows(HERE / "results" / "main_job.jsonl")
VICTIMS = HERE / "victims"
EIGHT = ("BadNets", "Blended", "SIG", "LF", "SSBA", "TrojanNN", "WaNet", "InputAware")
SEARCHED = (LF, TrojanNN, LabelConsistent, Invisible)
"""Attacks that look into a clean model: on CIFAR-10 the one of `main_job.py` with seed 1, as an attacker does not know
with which weights the victim begins."""

LEAST: dict[str, float] = {
    **dict.fromkeys(("BadNets", "Blended", "LF", "TrojanNN", "InputAware", "SSBA", "BPP", "FTrojan"), 0.94),
    **dict.fromkeys(("WaNet", "LIRA"), 0.88),
    "SIG": 0.85,
}
"""ASR that an attack is to reach on CIFAR-10; of the others it is only stated."""

PAPERS: dict[str, tuple[float, float]] = {
    "BadNets": (91.82, 93.79),
    "Blended": (93.44, 97.71),
    "InputAware": (94.03, 98.35),
    "LabelConsistent": (84.55, 99.93),
    "LF": (93.01, 99.06),
    "SIG": (84.49, 97.87),
    "SSBA": (92.88, 97.07),
    "TrojanNN": (93.47, 99.99),
    "WaNet": (92.80, 98.90),
}
"""ACC and ASR in percent of Zhu et al. (FT-SAM, ICCV 2023), Table 1: width 64, 100 epochs; SIG and label-consistent
poison all of their class there."""


@dataclass(frozen=True)
class Cell:
    """One victim: what it is called in the table, and how it is made."""

    data: str
    name: str
    attack: Attack | None
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return self.data, self.name, self.seed


def cells() -> Iterator[Cell]:
    """Yield all victims, the standard ones first."""
    for name in EIGHT:
        yield Cell("cifar10", name, ATTACKS[name]())
    for seed in (1, 2):
        yield from (Cell("cifar10", type(one).__name__, one, seed) for one in (BadNets(), Blended(), WaNet()))
    yield Cell("cifar10", "None", None)
    yield from (Cell("cifar10", name, ATTACKS[name]()) for name in ATTACKS if name not in EIGHT)
    # At the literature's "10 %" no clean image of the target class is left.
    yield Cell("cifar10", "SIG, whole class", SIG(poison_rate=0.1))
    yield Cell("cifar10", "LabelConsistent, whole class", LabelConsistent(poison_rate=0.1))
    yield Cell("cifar10", "BadNets, all-to-all", BadNets(labels="all-to-all"))
    yield Cell("cifar10", "Invisible, l0", Invisible(norm="l0"))
    yield Cell("cifar10", "Blended, cartoon", Blended(pattern="cartoon"))
    yield Cell("cifar10", "Blended, stripes", Blended(pattern="stripes"))
    for data in ("gtsrb", "tiny_imagenet"):
        yield Cell(data, "None", None)
        yield from (Cell(data, type(one).__name__, one) for one in (BadNets(), Blended(), WaNet(), InputAware()))


class Bench:
    """Data, read once each, and where results go.

    Args:
        data: folder of the data sets.
        work: folder for the states of interrupted victims.
        width: of PreActResNet18.
        rows: results.
        runtime: device and threads; the seed is each cell's own.
    """

    def __init__(self, data: Path, work: Path, width: int, rows: Rows, runtime: Runtime) -> None:
        self.data, self.work, self.width, self.rows, self.runtime = data, work, width, rows, runtime
        self.committed = width == 16 and runtime.place.type == "cpu"
        self.sets: dict[str, tuple[ImageSet, ImageSet]] = {}

    def images(self, name: str) -> tuple[ImageSet, ImageSet]:
        """Return training and test images of a data set."""
        if name not in self.sets:
            self.sets = {name: (read_images(self.data / name, "train"), read_images(self.data / name, "test"))}
        return self.sets[name]

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train one victim and return its row."""
        train, test = self.images(cell.data)
        runtime = replace(self.runtime, seed=cell.seed)
        described = runtime.describe()
        attack = cell.attack
        if isinstance(attack, SEARCHED) and cell.data == "cifar10" and self.width == 16:
            attack = replace(attack, clean_model=VICTIMS / "None-1.safetensors")
        # GTSRB's signs are not to be mirrored.
        recipe = Recipe(augmentation="crop" if cell.data == "gtsrb" else "light")
        work = self.work / "-".join(map(str, (*cell.key, self.width))).replace(" ", "")
        work.mkdir(parents=True, exist_ok=True)

        def build() -> Network:
            return new_network(partial(PreActResNet18, width=self.width), train, runtime)

        network = build()
        resumed = any(work.iterdir())
        with measured() as cost:
            fitted = attack.prepare(train, build, runtime, work) if attack else None
            history = fit(
                network,
                fitted.train if fitted else train,
                recipe,
                runtime,
                hook=fitted.hook if fitted else None,
                resume=work / RESUME,
                description=cell.name,
            )
        # Measured as it is kept: with weights of 16 bits.
        network.half().float()
        row = {**described, "data": cell.data, "attack": cell.name, "seed": cell.seed, "width": self.width}
        row |= {"options": options_of(attack) if attack else None, "rounds": history.epochs, "resumed": resumed}
        if not fitted or not attack:
            row |= evaluate(network, test, runtime).to_json()
        else:
            row |= evaluate(network, test, runtime, fitted.trigger, fitted.criterion).to_json()
            triggered, originals = triggered_images(test, fitted.trigger, fitted.criterion)
            row["stealth"] = stealth(originals.images[:1000], triggered[:1000]).to_json()
            if cell.name in EIGHT and cell.data == "cifar10" and cell.seed == 0 and self.committed:
                save_attack(VICTIMS / f"{cell.name}-0.attack.safetensors", fitted, options_of(attack))
                mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()}
                made_by = {"program": "benchmarks/attacks.py", "seed": cell.seed, "recipe": options_of(recipe)}
                save_model(VICTIMS / f"{cell.name}-0.safetensors", network.half(), provenance=made_by, backdoored=mark)
        finished = self.rows.add(row, cost)
        (work / RESUME).unlink(missing_ok=True)
        remove_work(work)
        return finished


def known(rows: Rows) -> list[dict[str, Any]]:
    """Return all victims that there are, those of `main_job.py` among them."""
    shared = [
        {**row, "data": "cifar10", "width": 16}
        for row in MAIN_JOB.read()
        if row["job"] == "victim" and not (row["attack"] == "SIG" and row["seed"] > 0)
    ]
    return [*shared, *rows.read()]


def main() -> None:
    """Train the victims that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument(
        "--work", type=Path, default=Path("build/attacks"), help="for the states of interrupted victims"
    )
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    suffix = "" if (arguments.width, arguments.device) == (16, "cpu") else f"_{arguments.device}_{arguments.width}"
    rows, table = (HERE / "results" / f"attacks{suffix}.{kind}" for kind in ("jsonl", "md"))
    store = Rows(rows)
    if not arguments.table:
        runtime = Runtime(device=arguments.device, threads=arguments.threads)
        bench = Bench(arguments.data, arguments.work, arguments.width, store, runtime)
        for cell in cells():
            done = {
                (row["data"], row["attack"], row["seed"]) for row in known(store) if row["width"] == arguments.width
            }
            if cell.key in done:
                continue
            print(cell.key, f"{bench.run(cell)['seconds']} s", flush=True)
            table.write_text(written(known(store), arguments.width))
    table.write_text(written(known(store), arguments.width))
    print(table)


def written(done: list[dict[str, Any]], width: int) -> str:
    """Return the victims as Markdown."""
    done = [row for row in done if row["width"] == width]
    lines = [
        "# Every attack",
        "",
        f"Made by `python benchmarks/attacks.py`: PreActResNet18 of width {width}, the attacks' default options (10 %"
        " poison unless their papers say otherwise; SIG, label-consistent and CTRL: 5 % of all, half of the target"
        " class), intervals: 95 % Wilson. ASR is of images rounded to 8 bits. PSNR and the rest compare clean and"
        " triggered test images. One line a victim in `attacks.jsonl` and `main_job.jsonl`; the seconds of those of the"
        " latter include measuring and saving.",
        "",
        *machines(done),
    ]
    for data in ("cifar10", "gtsrb", "tiny_imagenet"):
        rows = [row for row in done if row["data"] == data]
        if not rows:
            continue
        lines += [
            "",
            f"## {data}",
            "",
            "| attack | seed | ACC % | ASR % | aim | ASR unrounded % | RA % | PSNR dB | SSIM | changed % | seconds"
            " | CPU seconds | paper's ACC / ASR |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        names = list(dict.fromkeys(cell.name for cell in cells() if cell.data == data))
        for name in names:
            lines += _group(sorted((r for r in rows if r["attack"] == name), key=lambda row: row["seed"]), data)
    return "\n".join(lines) + "\n"


def _group(rows: list[dict[str, Any]], data: str) -> Iterator[str]:
    """Yield the lines of one attack's seeds, and of their mean."""
    for row in rows:
        seen = row.get("stealth") or {}
        least = LEAST.get(row["attack"]) if data == "cifar10" else None
        reached = "" if least is None else f">= {100 * least:.0f}: {'yes' if row['asr']['value'] >= least else 'no'}"
        paper = PAPERS.get(row["attack"]) if data == "cifar10" else None
        fields = [
            row["attack"],
            str(row["seed"]),
            *(share(row.get(name)) for name in ("acc", "asr")),
            reached,
            *(share(row.get(name)) for name in ("asr_unrounded", "ra")),
            *(f"{seen[name]:.{digits}f}" if seen.get(name) else "" for name, digits in (("psnr", 1), ("ssim", 3))),
            f"{100 * seen['changed']:.1f}" if seen else "",
            # The clock of a resumed victim knows its last part only.
            *(["resumed"] * 2 if row.get("resumed") else [f"{row[clock]:.0f}" for clock in ("seconds", "cpu_seconds")]),
            f"{paper[0]} / {paper[1]}" if paper else "",
        ]
        yield f"| {' | '.join(fields)} |"
    if len(rows) > 1:
        means = [
            f"**{100 * statistics.mean(row[name]['value'] for row in rows):.2f}**" if name in rows[0] else ""
            for name in ("acc", "asr")
        ]
        yield f"| {rows[0]['attack']} | mean | {' | '.join(means)} | | | | | | | | | |"


if __name__ == "__main__":
    main()
