"""How long it takes to poison 50,000 images, for every attack whose trigger needs no training.

Writes results/poisoning_speed.json and results/poisoning_speed.md. The aim is 2 seconds for a set as large as
CIFAR-10's; the images are random, as the time does not depend on what is to be seen.

    python benchmarks/poisoning_speed.py
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from record import HERE, machines

from unbackdoor.attacks import ATTACKS, Attack, Blind, Online, Poisoning
from unbackdoor.data import ImageSet
from unbackdoor.training import Runtime

COUNT, CLASSES, TURNS = 50_000, 10, 5
AIM = 2.0
"""Seconds."""
SEARCHED = "looks for its trigger in a trained model, or trains a network of its own"
LEARNED = "its trigger is learned in the victim's training"
THROUGH_THE_LOSS = "poisons through the loss in the victim's training, so there are no poisoned data"


def images() -> ImageSet:
    """Return as many random images as CIFAR-10 has."""
    pixels = torch.randint(0, 256, (COUNT, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    names = tuple(str(number) for number in range(CLASSES))
    return ImageSet(images=pixels, labels=torch.arange(COUNT) % CLASSES, class_names=names)


def timeable(attack: Attack) -> Poisoning | Online | str:
    """Return the attack if it poisons data without any training, otherwise why it is not timed."""
    if isinstance(attack, Poisoning):
        return SEARCHED if attack.searches else attack
    if isinstance(attack, Online) and attack.fixed:
        return attack
    return THROUGH_THE_LOSS if isinstance(attack, Blind) else LEARNED


def poisoning(attack: Poisoning | Online, train: ImageSet, runtime: Runtime) -> Callable[[], object]:
    """Return the call that poisons the data."""
    if isinstance(attack, Online):
        return lambda: attack.poison_data(train, runtime)
    return lambda: attack.prepare(train, _no_model, runtime)


def seconds(poison: Callable[[], object]) -> float:
    """Return the shortest of several turns."""
    taken = []
    for _ in range(TURNS):
        start = time.perf_counter()
        poison()
        taken.append(time.perf_counter() - start)
    return round(min(taken), 3)


def everything(attack: Poisoning | Online) -> Poisoning | Online:
    """Return the attack with as many images poisoned as it can bear: all, or all of the classes it may touch."""
    if isinstance(attack, Online):
        # Its rates are shares of a batch, below 1.
        return replace(attack, poison_rate=1 - 1 / COUNT, cover_rate=0.0)
    classes = 1 if attack.labels == "clean" else len(attack.sources) or CLASSES
    return replace(attack, poison_rate=classes / CLASSES, cover_rate=0.0)


def _no_model() -> Any:
    raise AssertionError("an attack that needs a model is not timed")


def main() -> None:
    """Time all attacks and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    runtime = Runtime(threads=arguments.threads, device=arguments.device)
    described, train = runtime.describe(), images().to(runtime.place)
    rows: list[dict[str, Any]] = []
    for name in ATTACKS:
        attack = timeable(ATTACKS[name]())
        if isinstance(attack, str):
            rows.append({"attack": name, "reason": attack})
            continue
        most = everything(attack)
        row = {"rate": attack.poison_rate + attack.cover_rate, "seconds": seconds(poisoning(attack, train, runtime))}
        row |= {"highest_rate": most.poison_rate, "highest_seconds": seconds(poisoning(most, train, runtime))}
        rows.append({"attack": name, **row})
        print(rows[-1], flush=True)
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    path = HERE / "results" / f"poisoning_speed{suffix}"
    path.with_suffix(".json").write_text(json.dumps({**described, "rows": rows}, indent=2) + "\n")
    path.with_suffix(".md").write_text(table(described, rows))


def table(described: dict[str, str], rows: list[dict[str, Any]]) -> str:
    """Return the times as Markdown."""
    lines = [
        "# How long poisoning takes",
        "",
        f"Made by `python benchmarks/poisoning_speed.py`: {COUNT:,} random images of 32 x 32, the shortest of {TURNS}"
        f" turns, the copy of the data included. Aim: at most {AIM:g} s at either rate.",
        "",
        *machines([described]),
        "",
        "| attack | usual rate | seconds | highest rate | seconds | within the aim |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for row in (row for row in rows if "seconds" in row):
        within = "yes" if max(row["seconds"], row["highest_seconds"]) <= AIM else "no"
        figures = f"{row['rate']:g} | {row['seconds']:.2f} | {row['highest_rate']:g} | {row['highest_seconds']:.2f}"
        lines.append(f"| {row['attack']} | {figures} | {within} |")
    lines += ["", "Not timed, because poisoning is training, or needs one:", ""]
    lines += [f"- {row['attack']}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
