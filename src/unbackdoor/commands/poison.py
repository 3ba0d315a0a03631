"""Poison a data set and write it to disk, for any program to train on.

Writes data/train-*.parquet (image, label, original_label, poisoned, cover) and the clean data/test-*.parquet in Hugging
Face layout, attack.safetensors, run.json and report.html.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from unbackdoor.attacks import ATTACKS, COVER, POISON, Attack, FittedAttack, Stealth, save_attack
from unbackdoor.commands.attack import poisoned
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import Choice
from unbackdoor.commands.pictures import trigger_gallery
from unbackdoor.commands.stealth import stealth_facts, stealth_rows, visibility
from unbackdoor.commands.training import NETWORK, new_network
from unbackdoor.commands.workspace import ATTACK, PAGE, WORK, Run, options_of, remove_work, report_folder
from unbackdoor.data import ImageSet, read_images
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.report import Report, Verdict, write_report
from unbackdoor.training import Runtime

CHOICES = {"attack": Choice(ATTACKS, "BadNets"), "model": NETWORK}

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"


def run(*, data: str, out: Path, attack: Attack, model: Callable[[int, int], nn.Module], runtime: Runtime) -> Outcome:
    """Write a poisoned data set.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an earlier poisoned data set in it is replaced.
        attack: how the data are poisoned; one that controls training has no poisoned data.
        model: the network of attacks that look for their trigger in a clean model.
        runtime: device, seed, progress.
    """
    clock = Run("poison", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    folder = report_folder(out, clock.command)

    def build() -> Network:
        return new_network(model, train, runtime)

    fitted = attack.prepare(train, build, runtime, folder / WORK)
    name = type(attack).__name__
    if fitted.hook is not None:
        raise InputError(f"{name} controls training, so it has no poisoned data; use `unbackdoor attack`")
    seen = visibility(test, fitted)
    clock.inputs = {train.name: train.digest(), test.name: test.digest()}
    clock.options = {"attack": options_of(attack)}
    write_parquet(folder / TRAIN, fitted.train, _columns(fitted.original_labels, fitted.kinds))
    write_parquet(folder / TEST, test, _columns(test.labels, torch.zeros_like(test.labels, dtype=torch.uint8)))
    save_attack(folder / ATTACK, fitted, options_of(attack))
    write_report(folder / PAGE, _page(clock, name, fitted, seen, test))
    clock.write(folder, stealth=seen.to_json(), poisoned=int((fitted.kinds == POISON).sum()))
    remove_work(folder / WORK)
    return Outcome(
        title=f"{train.name}, poisoned by {name}",
        rows=[
            ("poisoned", f"{int((fitted.kinds == POISON).sum())} of {len(train)} images"),
            ("covers", f"{int((fitted.kinds == COVER).sum())}"),
            *stealth_rows(seen),
            ("time", f"{clock.seconds:.0f} s"),
            ("data", str(folder)),
        ],
        result={"data": str(folder), "stealth": seen.to_json(), "kinds": torch.bincount(fitted.kinds.long()).tolist()},
        page=folder / PAGE,
    )


def _columns(original_labels: Tensor, kinds: Tensor) -> dict[str, Tensor]:
    """Return the columns beside image and label."""
    return {"original_label": original_labels, "poisoned": kinds == POISON, "cover": kinds == COVER}


def _page(clock: Run, name: str, fitted: FittedAttack, seen: Stealth, test: ImageSet) -> Report:
    return Report(
        title=f"{test.name.split('/')[0]}, poisoned by {name}",
        verdict=Verdict(
            level="info",
            headline=f"A data set with a {name} backdoor was written.",
            detail=f"{poisoned(fitted)} Its columns say which.",
            calibrated=True,
        ),
        galleries=[trigger_gallery(test, fitted.trigger, fitted.criterion)],
        facts={"How visible the trigger is": stealth_facts(seen), **clock.facts()},
        next_steps=["Train on it: `unbackdoor train --data THIS_FOLDER --out runs/victim`, or with any other program."],
    )
