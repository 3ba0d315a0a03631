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
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from record import HERE, Rows, machines, measured, share
from scipy import stats
from tables import disturbed

from unbackdoor.attacks import (
    ATTACKS,
    LF,
    SIG,
    AdaptiveBlend,
    AdaptivePatch,
    Attack,
    BadNets,
    Blended,
    FittedAttack,
    InputAware,
    Invisible,
    LabelConsistent,
    SavedAttack,
    TrojanNN,
    WaNet,
    load_attack,
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

LEAST: dict[str, dict[str, float]] = {
    "cifar10": {
        **dict.fromkeys(("BadNets", "Blended", "LF", "TrojanNN", "InputAware", "SSBA", "BPP", "FTrojan"), 0.94),
        **dict.fromkeys(("WaNet", "LIRA"), 0.88),
        "SIG": 0.85,
    },
    "gtsrb": dict.fromkeys(("BadNets", "Blended", "WaNet", "InputAware"), 0.90),
}
"""ASR that an attack is to reach; of the others it is only stated."""
BELOW_CLEAN = 0.02
"""ACC on CIFAR-10 may be that much below clean training's."""
MINUTES = 12
"""That a victim on CIFAR-10 of width 16 may take on two cores."""
NEAR = 1.5
"""Points by which ACC and ASR of the full width on a GPU may be apart from the paper's."""

FTSAM: dict[str, tuple[float, float]] = {
    "BadNets": (91.82, 93.79),
    "BadNets, all-to-all": (91.89, 74.42),
    "Blended": (93.44, 97.71),
    "InputAware": (94.03, 98.35),
    "LabelConsistent, whole class": (84.55, 99.93),
    "LF": (93.01, 99.06),
    "SIG, whole class": (84.49, 97.87),
    "SSBA": (92.88, 97.07),
    "TrojanNN": (93.47, 99.99),
    "WaNet": (92.80, 98.90),
}
"""ACC and ASR in percent of Zhu et al. (FT-SAM, ICCV 2023), Table 1: CIFAR-10, width 64, 10 % poison, which is the
whole class of SIG and label-consistent."""
AGPD: dict[str, tuple[float, float]] = {
    "AdaptiveBlend": (92.87, 66.17),
    "CTRL": (95.52, 98.80),
    "SIG": (93.40, 95.43),
    "TaCT": (93.21, 95.95),
}
"""The same of a later paper of that group (AGPD, ICLR 2025), where the first has no such row; SIG at 5 %. We know the
poison rates of the others no more than their networks."""


@dataclass(frozen=True)
class Cell:
    """One victim: what it is called in the table, and how it is made.

    Attributes:
        data: name of the data set.
        name: in the table.
        attack: None trains a clean model.
        seed: of everything.
    """

    data: str
    name: str
    attack: Attack | None
    seed: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from the others."""
        return self.data, self.name, self.seed


def cells() -> Iterator[Cell]:
    """Yield all victims, those that a goal speaks of first."""
    for name in EIGHT:
        yield Cell("cifar10", name, ATTACKS[name]())
    for seed in (1, 2):
        yield from (Cell("cifar10", type(one).__name__, one, seed) for one in (BadNets(), Blended(), WaNet()))
    yield Cell("cifar10", "None", None)
    yield from (Cell("cifar10", name, ATTACKS[name]()) for name in ATTACKS if name not in EIGHT)
    # At the literature's "10 %" no clean image of the target class is left.
    yield Cell("cifar10", "SIG, whole class", SIG(poison_rate=0.1))
    yield Cell("cifar10", "LabelConsistent, whole class", LabelConsistent(poison_rate=0.1))
    for data in ("gtsrb", "tiny_imagenet"):
        yield Cell(data, "None", None)
        yield from (Cell(data, type(one).__name__, one) for one in (BadNets(), Blended(), WaNet(), InputAware()))
    yield Cell("cifar10", "BadNets, all-to-all", BadNets(labels="all-to-all"))
    yield Cell("cifar10", "Invisible, l0", Invisible(norm="l0"))
    yield Cell("cifar10", "Blended, cartoon", Blended(pattern="cartoon"))
    yield Cell("cifar10", "Blended, stripes", Blended(pattern="stripes"))
    # Their papers' rates leave no backdoor in as few epochs as ours.
    yield Cell("cifar10", "AdaptiveBlend, ten times", AdaptiveBlend(poison_rate=0.03, cover_rate=0.03))
    yield Cell("cifar10", "AdaptivePatch, ten times", AdaptivePatch(poison_rate=0.03, cover_rate=0.06))


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
        recipe = Recipe(augmentation="crop") if cell.data == "gtsrb" else Recipe()
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
            row["stealth"] = visibility(test, fitted)
            if cell.name in EIGHT and cell.data == "cifar10" and cell.seed == 0 and self.committed:
                save_attack(VICTIMS / f"{cell.name}-0.attack.safetensors", fitted, options_of(attack))
                mark = {"attack": options_of(attack), "criterion": fitted.criterion.to_json()}
                made_by = {"program": "benchmarks/attacks.py", "seed": cell.seed, "recipe": options_of(recipe)}
                save_model(VICTIMS / f"{cell.name}-0.safetensors", network.half(), provenance=made_by, backdoored=mark)
        finished = self.rows.add(row, cost)
        (work / RESUME).unlink(missing_ok=True)
        remove_work(work)
        return finished


def visibility(test: ImageSet, attack: FittedAttack | SavedAttack) -> dict[str, Any]:
    """Return how visible a trigger is on the first test images that count."""
    triggered, originals = triggered_images(test, attack.trigger, attack.criterion)
    return stealth(originals.images[:1000], triggered[:1000]).to_json()


@cache
def visibility_of_shared(data: Path) -> dict[str, dict[str, Any]]:
    """Return the same of the victims of `main_job.py` with seed 0, whose rows do not have it, by attack."""
    test = read_images(data / "cifar10", "test")
    return {
        name: visibility(test, load_attack(VICTIMS / f"{name}-0.attack.safetensors"))
        for name in ("BadNets", "Blended", "SIG")
    }


def known(rows: Rows, data: Path, committed: bool) -> list[dict[str, Any]]:
    """Return all victims that there are.

    Args:
        rows: of this program.
        data: folder of the data sets.
        committed: whether the size and the machine are those of `main_job.py`, whose victims are then among them.
    """
    shared = []
    for row in MAIN_JOB.read() if committed else []:
        if row["job"] == "victim" and not (row["attack"] == "SIG" and row["seed"] > 0):
            seen = visibility_of_shared(data).get(row["attack"]) if row["seed"] == 0 else None
            shared.append({**row, "data": "cifar10", "width": 16, **({"stealth": seen} if seen else {})})
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
    committed = (arguments.width, arguments.device) == (16, "cpu")
    suffix = "" if committed else f"_{arguments.device}_{arguments.width}"
    rows, table = (HERE / "results" / f"attacks{suffix}.{kind}" for kind in ("jsonl", "md"))
    store = Rows(rows)
    if not arguments.table:
        runtime = Runtime(device=arguments.device, threads=arguments.threads)
        bench = Bench(arguments.data, arguments.work, arguments.width, store, runtime)
        for cell in cells():
            there = known(store, arguments.data, committed)
            if cell.key in {(row["data"], row["attack"], row["seed"]) for row in there}:
                continue
            print(cell.key, f"{bench.run(cell)['seconds']} s", flush=True)
            table.write_text(written(known(store, arguments.data, committed), arguments.width, arguments.device))
    table.write_text(written(known(store, arguments.data, committed), arguments.width, arguments.device))
    print(table)


def written(done: list[dict[str, Any]], width: int, device: str) -> str:
    """Return the victims as Markdown."""
    done = [row for row in done if row["width"] == width]
    lines = [
        "# Every attack",
        "",
        f"Made by `python benchmarks/attacks.py`: PreActResNet18 of width {width}, the attacks' default options (10 %"
        " poison unless their papers say otherwise; SIG, label-consistent and CTRL: 5 % of all, half of the target"
        " class), intervals: 95 %, Wilson's for a victim, Student's for the mean over seeds. ASR is of images rounded"
        " to 8 bits. PSNR and the rest compare clean and triggered test images. One line a victim in `attacks.jsonl`"
        " and `main_job.jsonl`; the seconds of those of the latter include measuring and saving.",
        "",
        f"Goals: on CIFAR-10 the ASR in the column, ACC at most {100 * BELOW_CLEAN:g} points below clean training with"
        f" the same seed (or the mean of all seeds), and {MINUTES} minutes on two cores at width 16; on GTSRB the ASR"
        " alone. A victim that was resumed has no time to judge, and one whose CPU seconds are under nine tenths of"
        " what its threads could have had was disturbed: it can reach the goal, but not miss it.",
        "",
        "Papers: (1) Zhu et al., FT-SAM (ICCV 2023), Table 1, 10 % poison, which is the whole target class of SIG and"
        " label-consistent; (2) a later paper of that group (AGPD, ICLR 2025), SIG at 5 %, the rates of the others not"
        f" known to us. Both have width 64; there, on a GPU, the goal is to be within {NEAR:g} points of both figures.",
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
            "| attack | seed | ACC % | to clean training | ASR % | goal | ASR unrounded % | RA % | PSNR dB | SSIM"
            f" | changed % | largest of 255 | seconds | CPU seconds | <= {MINUTES} min | paper's ACC / ASR |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---|",
        ]
        clean = {row["seed"]: row["acc"]["value"] for row in rows if row["attack"] == "None"}
        for name in dict.fromkeys(cell.name for cell in cells() if cell.data == data):
            group = sorted((row for row in rows if row["attack"] == name), key=lambda row: row["seed"])
            lines += [_line(row, clean, device) for row in group]
            if len(group) > 1:
                acc, asr = (_mean([row[one]["value"] for row in group if one in row]) for one in ("acc", "asr"))
                lines.append(f"| {name} | mean | {acc} | | {asr} |{' |' * 11}")
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], clean: dict[int, float], device: str) -> str:
    """Return the line of one victim; `clean` is the ACC of clean training by seed."""
    seen, name = row.get("stealth") or {}, row["attack"]
    resumed = row.get("resumed")
    fields = [
        name,
        str(row["seed"]),
        share(row.get("acc")),
        _to_clean(row, clean),
        share(row.get("asr")),
        _goal(row),
        *(share(row.get(one)) for one in ("asr_unrounded", "ra")),
        *(f"{seen[one]:.{digits}f}" if seen.get(one) else "" for one, digits in (("psnr", 1), ("ssim", 3))),
        *(f"{factor * seen[one]:.{digits}f}" if seen else "" for one, factor, digits in SIZES),
        # The clock of a resumed victim knows its last part only.
        *("resumed" if resumed else f"{row[clock]:.0f}" for clock in ("seconds", "cpu_seconds")),
        _in_time(row) if device == "cpu" else "",
        _paper(row, device),
    ]
    return f"| {' | '.join(fields)} |"


SIZES = (("changed", 100, 1), ("largest", 255, 0))
"""What else is told of a trigger's size, times what, with how many digits."""


def _verdict(reached: bool) -> str:
    return "yes" if reached else "no"


def _goal(row: dict[str, Any]) -> str:
    least = LEAST.get(row["data"], {}).get(row["attack"])
    return "" if least is None else f">= {100 * least:.0f}: {_verdict(row['asr']['value'] >= least)}"


def _to_clean(row: dict[str, Any], clean: dict[int, float]) -> str:
    """Return how far ACC is from clean training's in points, and on CIFAR-10 whether that is near enough."""
    if row["attack"] == "None" or not clean:
        return ""
    apart = row["acc"]["value"] - clean.get(row["seed"], statistics.mean(clean.values()))
    # A hundredth of a point is one image; figures as they are written are what is judged.
    apart = round(apart, 4)
    return f"{100 * apart:+.2f}" + (f": {_verdict(apart >= -BELOW_CLEAN)}" if row["data"] == "cifar10" else "")


def _in_time(row: dict[str, Any]) -> str:
    """Return whether a victim on CIFAR-10 at width 16 was made in time, or why that is not known."""
    if row["data"] != "cifar10" or row["width"] != 16:
        return ""
    if row.get("resumed"):
        return "not judged: resumed"
    if row["seconds"] <= 60 * MINUTES:
        return "yes"
    return "not judged: disturbed" if disturbed(row) else "no"


def _paper(row: dict[str, Any], device: str) -> str:
    """Return a paper's figures with its number, and of the full width on a GPU whether ours are near them."""
    for number, papers in ((1, FTSAM), (2, AGPD)):
        if row["data"] == "cifar10" and row["attack"] in papers:
            theirs = papers[row["attack"]]
            told = f"{theirs[0]:.2f} / {theirs[1]:.2f} ({number})"
            if device == "cpu" or row["width"] != 64:
                return told
            ours = (100 * row["acc"]["value"], 100 * row["asr"]["value"])
            return f"{told}: {_verdict(all(abs(a - b) <= NEAR for a, b in zip(ours, theirs)))}"
    return ""


def _mean(values: list[float]) -> str:
    """Return the mean over seeds in percent with Student's interval, or nothing."""
    if not values:
        return ""
    half = float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return f"**{100 * mean:.2f}** [{100 * max(0.0, mean - half):.2f}, {100 * min(1.0, mean + half):.2f}]"


if __name__ == "__main__":
    main()
