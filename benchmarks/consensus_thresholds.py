"""The threshold of Consensus, on runs that no aim is judged by: what each value of it would hold poisoned.

5,000 images of CIFAR-10, of which each seed draws others; three attacks and clean data. The threshold meets what
Consensus measured of the parts of classes afterwards, so all values are judged on the same runs. Writes one line of
JSON a run to results/consensus_thresholds.jsonl and the table results/consensus_thresholds.md; a finished run is not
done again:

    python benchmarks/consensus_thresholds.py                  # nine minutes on two cores
    python benchmarks/consensus_thresholds.py --table          # only write the table

A value is fit for use if it holds at most 1 % of the clean rows poisoned, both beside poison and in data that are
clean. Of those, the one with the highest TPR; of several such, the one in the middle, or the lower of two.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from record import HERE, Rows, machines, measured
from tables import mean, percent

from unbackdoor.attacks import SIG, Attack, BadNets, Blended
from unbackdoor.attacks.base import POISON
from unbackdoor.data import ImageSet, read_images
from unbackdoor.sift import Consensus, quick_model
from unbackdoor.sift.consensus import Part
from unbackdoor.sift.observed import Observed
from unbackdoor.sift.quick_model import NETWORK
from unbackdoor.training import Runtime, new_network

SEEDS = (10, 11, 12)
"""None of them is in grids/sift-small.yaml."""

ROWS = 5000
ATTACKS: dict[str, Attack | None] = {
    "BadNets": BadNets(),
    "Blended": Blended(),
    "SIG": SIG(poison_rate=0.05),
    "None": None,
}
THRESHOLDS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0)
MOST = 0.01
"""Share of clean rows that may be held poisoned."""


def run(images: ImageSet, name: str, runtime: Runtime) -> dict[str, Any]:
    """Return what Consensus measures of the parts of classes, and how many of their rows are poison."""
    drawn = torch.randperm(len(images), generator=runtime.generator("rows"))[:ROWS]
    rows, attack = images.subset(drawn), ATTACKS[name]
    kinds = torch.zeros(len(rows), dtype=torch.uint8)
    if attack is not None:
        fitted = attack.prepare(rows, partial(new_network, NETWORK, rows, runtime), runtime)
        rows, kinds = fitted.train, fitted.kinds
    order = rows.canonical_order()
    rows, kinds = rows.subset(order), kinds[order]
    _, parts = Consensus().parts(Observed(quick_model(rows, runtime), rows, None, runtime))
    told = [
        {
            "rows": len(part.members),
            "poisoned": int((kinds[part.members] == POISON).sum()),
            "movement": part.movement,
            "loss": part.loss,
            "apart": part.apart,
            "ahead": part.ahead,
        }
        for part in parts
    ]
    return {**runtime.describe(), "attack": name, "rows": len(rows), "parts": told}


def judged(row: dict[str, Any], threshold: float) -> dict[str, Any]:
    """Return the TPR, if there is poison, and the FPR of a run under a threshold."""
    poison = found = clean = accused = 0
    for told in row["parts"]:
        part = Part(label=0, members=torch.empty(0, dtype=torch.long), **{name: told[name] for name in MEASURED})
        held = part.accused(threshold)
        poison, found = poison + told["poisoned"], found + held * told["poisoned"]
        others = told["rows"] - told["poisoned"]
        clean, accused = clean + others, accused + held * others
    shares = {"tpr": found / poison} if poison else {}
    return {"attack": row["attack"], **shares, "fpr": accused / clean}


MEASURED = ("movement", "loss", "apart", "ahead")


def chosen(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the threshold by the rule above; None if no value is fit for use."""
    fit = [found for found in _values(rows) if max(found["fpr"], found["clean"]) <= MOST]
    most = max((found["tpr"] for found in fit), default=0.0)
    best = [found["threshold"] for found in fit if found["tpr"] == most]
    return statistics.median_low(best) if best else None


def _values(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, float]]:
    """Yield means of each threshold: over attacks, and over runs of clean data."""
    for threshold in THRESHOLDS:
        results = [judged(row, threshold) for row in rows]
        attacked = [result for result in results if "tpr" in result]
        clean = [result["fpr"] for result in results if "tpr" not in result]
        if attacked and clean:
            shares = {name: mean(attacked, name) or 0.0 for name in ("tpr", "fpr")}
            yield {"threshold": threshold, **shares, "clean": statistics.mean(clean)}


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return all thresholds as Markdown, and what they mean for the default."""
    best = chosen(rows)
    named = "no value" if best is None else f"{best:g}"
    lines = [
        "# The threshold of Consensus",
        "",
        f"Made by `python benchmarks/consensus_thresholds.py`: {len(rows)} of {len(SEEDS) * len(ATTACKS)} runs on"
        f" {ROWS} images of CIFAR-10, seeds {', '.join(map(str, SEEDS))}. Means are over attacks, each the mean over"
        " its seeds. They are what a threshold does on the runs that choose it, and no promise for others.",
        "",
        *machines(list(rows)),
        "",
        f"At most {100 * MOST:g} % of clean rows held poisoned, of those the highest TPR, and of several such the one"
        f" in the middle: {named}. The default is {Consensus().threshold:g}.",
        "",
        "| threshold | TPR % | FPR % | of clean data held % |",
        "|---:|---:|---:|---:|",
        *(
            f"| {found['threshold']:g} | {' | '.join(percent(found[name]) for name in ('tpr', 'fpr', 'clean'))} |"
            for found in _values(rows)
        ),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    store, table = (HERE / "results" / f"consensus_thresholds.{kind}" for kind in ("jsonl", "md"))
    rows = Rows(store)
    if not arguments.table:
        images = read_images(arguments.data, "train")
        done = {(row["seed"], row["attack"]) for row in rows.read()}
        for seed, name in itertools.product(SEEDS, ATTACKS):
            if (str(seed), name) not in done:
                runtime = Runtime(device=arguments.device, threads=arguments.threads, seed=seed)
                with measured() as cost:
                    row = run(images, name, runtime)
                print(name, seed, f"{rows.add(row, cost)['seconds']} s", flush=True)
    table.write_text(written(rows.read()))
    print(table)


if __name__ == "__main__":
    main()
