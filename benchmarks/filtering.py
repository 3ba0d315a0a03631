"""What `unbackdoor filter` answers on the kept victims of the eight attacks: do images that come in carry triggers?

A tenth of the images that come in has the trigger, or none has. The filter gets them, other clean test images, and the
model:

    python benchmarks/filtering.py --data ../shared/data/cifar10
    python benchmarks/filtering.py --table                                # only write the table

Writes one line of JSON a filter, victim and kind of images to results/filtering.jsonl and the table
results/filtering.md. What is done is not done again. Reading, stamping and judging are on no clock.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from input_filters import Mixed, mixed, victims
from record import HERE, Rows, machines, measured
from tables import percent

from unbackdoor.attacks import load_attack
from unbackdoor.data import ImageSet, draw_clean, read_images
from unbackdoor.models import load_model
from unbackdoor.options import options_of
from unbackdoor.sift import InputFilter, ScaleUp, TeCo
from unbackdoor.sift.filtered import filter_images
from unbackdoor.training import Runtime

CLEAN = 500
"""Clean images to compare with, the command's default."""
CAME = 400
"""Images that come in."""
STAMPED = 40
"""Of them with the trigger; those of the attacker's class fall out."""
CASES: tuple[tuple[InputFilter, float], ...] = (
    (ScaleUp(), 0.05),
    (ScaleUp(), 0.2),
    (ScaleUp(by_class=True), 0.05),
    (TeCo(), 0.05),
)
"""Filters, and the share of clean images that may be held triggered: the command's default, and one for which
SCALE-UP's six scores are not too coarse."""


def run(
    victim: str, method: InputFilter, false_alarms: float, triggered: bool, test: ImageSet, runtime: Runtime
) -> dict[str, Any]:
    """Filter images for one victim, and count; return the row and its cost.

    Args:
        victim: file in `victims/`, without its ending.
        method: filter.
        false_alarms: share of clean images that may be held triggered.
        triggered: whether some images have the trigger.
        test: images of which all are drawn.
        runtime: device, seed.
    """
    attack = load_attack(HERE / "victims" / f"{victim}.attack.safetensors")
    model = load_model(HERE / "victims" / f"{victim}.safetensors").network
    generator = runtime.generator("filtering", victim)
    order = torch.randperm(len(test), generator=generator)
    stamped, plain, rest = order.tensor_split([STAMPED, CAME])
    clean = draw_clean(test.subset(rest), CLEAN, runtime.seed)
    if triggered:
        came = mixed(test.subset(plain), test.subset(stamped), attack, generator)
    else:
        came = Mixed(test.subset(order[:CAME]).images, torch.zeros(CAME, dtype=torch.bool))
    # What libraries do at their first call is on no clock.
    method.score(model, came.images[:8], runtime)
    with measured() as cost:
        found = filter_images(method, model, came.images, clean.images, runtime, false_alarms)
    return {
        **runtime.describe(),
        "victim": victim,
        "filter": type(method).__name__,
        "options": options_of(method),
        "false_alarms": false_alarms,
        "images": len(came.images),
        "with_trigger": int(came.triggered.sum()),
        "compared_with": found.clean,
        "held": int(found.triggered.sum()),
        "held_with_trigger": int((found.triggered & came.triggered).sum()),
        "by_chance": found.by_chance,
        "verdict": found.verdict,
        "cost": cost,
    }


def main() -> None:
    """Do the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    store, table = (HERE / "results" / f"filtering.{kind}" for kind in ("jsonl", "md"))
    rows = Rows(store)
    if not arguments.table:
        runtime = Runtime(device=arguments.device, threads=arguments.threads, seed=arguments.seed)
        test = read_images(arguments.data, "test")
        finished = [_key(row) for row in rows.read()]
        for (method, rate), victim, triggered in itertools.product(CASES, victims(), (True, False)):
            key = (victim, type(method).__name__, options_of(method), rate, triggered, str(arguments.seed))
            if key in finished:
                continue
            row = run(victim, method, rate, triggered, test, runtime)
            done = rows.add(row, row.pop("cost"))
            print(victim, *_case(done), done["held_with_trigger"], "of", done["held"], done["verdict"], flush=True)
    table.write_text(written(rows.read()))
    print(table)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    told = ("victim", "filter", "options", "false_alarms")
    return *(row[name] for name in told), row["with_trigger"] > 0, row["seed"]


def _case(row: dict[str, Any]) -> tuple[str, str]:
    """Return a row's filter and rate of false alarms, for people."""
    return row["filter"] + (" by class" if row["options"].get("by_class") else ""), f"{100 * row['false_alarms']:g} %"


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown: a line a filter, then every row."""
    lines = [
        "# Filtering images that come in",
        "",
        f"Made by `python benchmarks/filtering.py`: what `unbackdoor filter` says of some {CAME} test images of"
        " CIFAR-10, a tenth of them with the trigger or none, by the kept victims and"
        f" {CLEAN} other test images, which are clean. *Rate* is the share of clean images that may be held triggered."
        " *Told* are the victims of which it says rightly that triggered images came in, *accused* those of which it"
        " says so though none did, *inconclusive* answers of both kinds. All triggered images count, also those at"
        " which the model answers right.",
        "",
        *machines(list(rows)),
        "",
        "| filter | rate | victims | told | accused | inconclusive | triggered images held, % | clean images held, % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *_means(rows),
        "",
        "| victim | filter | rate | seed | images | with trigger | compared with | held | of them with trigger"
        " | by chance | says | seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|",
        *_lines(rows),
    ]
    return "\n".join(lines) + "\n"


def _means(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for case in sorted({_case(row) for row in rows}):
        own = [row for row in rows if _case(row) == case]
        some, none = ([row for row in own if (row["with_trigger"] > 0) == wanted] for wanted in (True, False))
        found = [row["held_with_trigger"] / row["with_trigger"] for row in some]
        clean = [(row["held"] - row["held_with_trigger"]) / (row["images"] - row["with_trigger"]) for row in own]
        fields = [*case, str(len({row["victim"] for row in own}))]
        fields += [str(sum(row["verdict"] is True for row in part)) for part in (some, none)]
        fields += [str(sum(row["verdict"] is None for row in own))]
        fields += [percent(statistics.mean(part)) if part else "" for part in (found, clean)]
        yield f"| {' | '.join(fields)} |"


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    words = {True: "triggered", False: "no evidence", None: "inconclusive"}
    for row in sorted(rows, key=lambda row: (row["victim"], _case(row), -row["with_trigger"])):
        counts = [str(row[name]) for name in ("images", "with_trigger", "compared_with", "held", "held_with_trigger")]
        fields = [row["victim"], *_case(row), row["seed"], *counts, f"{row['by_chance']:.2g}", words[row["verdict"]]]
        yield f"| {' | '.join([*fields, str(row['seconds'])])} |"


if __name__ == "__main__":
    main()
