"""Filters of inputs on the kept victims of the eight attacks: do they tell triggered test images from clean ones?

One part of the test images comes as it is, another with the trigger, images of the attacker's class left out; no image
comes as both, so that the two kinds are independent samples. A filter sees them mixed, and nothing but them and the
model.

    python benchmarks/input_filters.py --data ../shared/data/cifar10
    python benchmarks/input_filters.py --table                                # only write the table

Writes one line of JSON a filter and victim to results/input_filters.jsonl and the table results/input_filters.md. What
is done is not done again. Reading, stamping and judging are on no clock.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, UInt8
from record import HERE, Rows, machines, measured
from tables import percent
from torch import Tensor

from unbackdoor.attacks import SavedAttack, load_attack
from unbackdoor.data import ImageSet, read_images
from unbackdoor.detection import FALSE_ALARMS, auroc, threshold
from unbackdoor.evaluate import Proportion, evaluate, triggered_images
from unbackdoor.models import load_model
from unbackdoor.sift import INPUT_FILTERS
from unbackdoor.training import Runtime

COUNT = 2000
"""Images of either kind; of the triggered ones, those of the attacker's class fall out."""


class Mixed(NamedTuple):
    """Images that come in.

    Attributes:
        images: clean and triggered, in an order by chance.
        triggered: which is which.
    """

    images: UInt8[Tensor, "n c h w"]
    triggered: Bool[Tensor, "n"]


def parted(test: ImageSet, count: int, generator: torch.Generator) -> tuple[ImageSet, ImageSet]:
    """Return so many images of the test set that are to stay as they are, and as many others that are to be stamped."""
    order = torch.randperm(len(test), generator=generator)
    return test.subset(order[:count]), test.subset(order[count : 2 * count])


def mixed(plain: ImageSet, others: ImageSet, attack: SavedAttack, generator: torch.Generator) -> Mixed:
    """Return the former as they are, and those of the latter that count with the trigger."""
    stamped, _ = triggered_images(others, attack.trigger, attack.criterion)
    triggered = torch.cat([torch.zeros(len(plain), dtype=torch.bool), torch.ones(len(stamped), dtype=torch.bool)])
    shuffled = torch.randperm(len(triggered), generator=generator)
    return Mixed(torch.cat([plain.images, stamped])[shuffled], triggered[shuffled])


def victims() -> list[str]:
    """Return the names of the kept victims whose attack is kept, too."""
    ending = ".attack.safetensors"
    return sorted(path.name.removesuffix(ending) for path in (HERE / "victims").glob(f"*{ending}"))


def run(victim: str, name: str, test: ImageSet, count: int, runtime: Runtime) -> dict[str, Any]:
    """Score images for one victim by one filter, and measure; return the row and its cost."""
    attack = load_attack(HERE / "victims" / f"{victim}.attack.safetensors")
    model = load_model(HERE / "victims" / f"{victim}.safetensors").network
    generator = runtime.generator("filters", victim)
    plain, others = parted(test, count, generator)
    images, triggered = mixed(plain, others, attack, generator)
    # What libraries do at their first call is on no clock.
    INPUT_FILTERS[name]().score(model, images[:8], runtime)
    with measured() as cost:
        scores = INPUT_FILTERS[name]().score(model, images, runtime)
    area = auroc(scores[triggered], scores[~triggered])
    passed = scores[triggered] > threshold(scores[~triggered], FALSE_ALARMS)
    tpr = Proportion(int(passed.sum()), len(passed))
    row = {**runtime.describe(), "victim": victim, "filter": name, "count": count, "images": len(images)}
    row |= {"auroc": area.value, "auroc_low": area.low, "auroc_high": area.high}
    row |= {"tpr_at_1": tpr.value, "tpr_at_1_low": tpr.low, "tpr_at_1_high": tpr.high}
    asr = evaluate(model, others, runtime, attack.trigger, attack.criterion).asr
    return {**row, "asr": asr.value if asr else None, "cost": cost}


def main() -> None:
    """Do the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/cifar10"))
    parser.add_argument("--count", type=int, default=COUNT, help="images of either kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="only write the table")
    arguments = parser.parse_args()
    store, table = (HERE / "results" / f"input_filters.{kind}" for kind in ("jsonl", "md"))
    rows = Rows(store)
    if not arguments.table:
        runtime = Runtime(device=arguments.device, threads=arguments.threads, seed=arguments.seed)
        test = read_images(arguments.data, "test")
        finished = {_key(row) for row in rows.read()}
        for victim in victims():
            for name in INPUT_FILTERS:
                key = (victim, name, arguments.count, str(arguments.seed))
                if key in finished:
                    continue
                row = run(victim, name, test, arguments.count, runtime)
                done = rows.add(row, row.pop("cost"))
                print(victim, name, f"AUROC {done['auroc']:.4f}, {done['seconds']} s", flush=True)
    table.write_text(written(rows.read()))
    print(table)


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["victim"], row["filter"], row["count"], row["seed"]


def written(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown: means over the victims, then every row."""
    lines = [
        "# Filters of inputs",
        "",
        "Made by `python benchmarks/input_filters.py`: test images of CIFAR-10, as they are and with the trigger, on"
        " the kept victims. AUROC of the scores with DeLong's 95 % interval; TPR at FPR 1 %: the share of triggered"
        " images that score above all but 1 % of the clean ones, with Wilson's. All triggered images count, also those"
        " at which the model answers right; ASR is of the very same ones. ScaleUp's scores have six levels; where"
        " more than 1 % of the clean images have the highest of them, its TPR is 0. A filter by itself sets no"
        " threshold. CPU seconds tell whether a row was disturbed.",
        "",
        *machines(list(rows)),
        "",
        "| filter | victims | AUROC, mean | lowest | TPR at FPR 1 %, mean | images a second |",
        "|---|---:|---:|---:|---:|---:|",
        *_means(rows),
        "",
        "| victim | filter | seed | images | ASR % | AUROC | TPR at FPR 1 % | seconds | CPU seconds |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *_lines(rows),
    ]
    return "\n".join(lines) + "\n"


def _means(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for name in sorted({row["filter"] for row in rows}):
        own = [row for row in rows if row["filter"] == name]
        areas = [row["auroc"] for row in own]
        speed = sum(row["images"] for row in own) / max(sum(row["seconds"] for row in own), 0.1)
        fields = [name, str(len({row["victim"] for row in own})), f"{statistics.mean(areas):.4f}", f"{min(areas):.4f}"]
        fields += [percent(statistics.mean(row["tpr_at_1"] for row in own)), f"{speed:.0f}"]
        yield f"| {' | '.join(fields)} |"


def _lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    for row in sorted(rows, key=_key):
        area = f"{row['auroc']:.4f} [{row['auroc_low']:.4f}, {row['auroc_high']:.4f}]"
        tpr = f"{percent(row['tpr_at_1'])} [{percent(row['tpr_at_1_low'])}, {percent(row['tpr_at_1_high'])}]"
        fields = [row["victim"], row["filter"], row["seed"], str(row["images"]), percent(row["asr"]), area, tpr]
        yield f"| {' | '.join([*fields, str(row['seconds']), str(row['cpu_seconds'])])} |"


if __name__ == "__main__":
    main()
