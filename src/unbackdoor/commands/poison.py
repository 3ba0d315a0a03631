"""Poison a data set and write it to disk, for any program to train on.

Writes data/train-*.parquet (image, label, original_label, poisoned, cover) and the clean data/test-*.parquet in Hugging
Face layout, attack.safetensors, run.json and report.html.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from unbackdoor.attacks import ATTACKS, COVER, POISON, Attack, FittedAttack, Online, Stealth, save_attack
from unbackdoor.commands.attack import poisoned
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import NETWORK, Choice
from unbackdoor.commands.stealth import stealth_facts, stealth_rows, visibility
from unbackdoor.commands.workspace import Run, remove_work, report_folder
from unbackdoor.data import ImageSet, read_images
from unbackdoor.data.parquet_writer import write_parquet
from unbackdoor.errors import OutputError
from unbackdoor.folder import ATTACK, PAGE, RUN, WORK
from unbackdoor.options import files_of, options_of
from unbackdoor.report import Report, Verdict, trigger_gallery, write_report
from unbackdoor.training import Runtime, check_fits, network_options, new_network

CHOICES = {"attack": Choice(ATTACKS, "BadNets"), "model": NETWORK}

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"


def run(*, data: str, out: Path, attack: Attack, model: Callable[[int, int], nn.Module], runtime: Runtime) -> Outcome:
    """Write a poisoned data set.

    Args:
        data: training and test images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        out: folder for the results; an earlier poisoned data set in it is replaced.
        attack: how the data are poisoned; one that needs its own training has no poisoned data.
        model: the network of attacks that look for their trigger in a clean model.
        runtime: device, seed, progress.
    """
    name = type(attack).__name__
    if isinstance(attack, Online):
        attack.check_fixed()
    clock = Run("poison", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    network = new_network(model, train, runtime)
    check_fits(network, train, test)
    with _own_folder(out, clock.command) as folder:
        clock.inputs = {train.name: train.digest(), test.name: test.digest(), **files_of(attack)}
        clock.options = {"attack": options_of(attack), "model": network_options(network)}
        # First, so that what an interruption leaves is known to be ours and unfinished.
        clock.write(folder, finished=False)
        (folder / ATTACK).unlink(missing_ok=True)
        if isinstance(attack, Online):
            fitted = attack.poison_data(train, runtime)
        else:
            fitted = attack.prepare(train, lambda: new_network(model, train, runtime), runtime, folder / WORK)
        seen = visibility(test, fitted)
        write_parquet(folder / TRAIN, fitted.train, _columns(fitted.original_labels, fitted.kinds))
        write_parquet(folder / TEST, test, _columns(test.labels, torch.zeros_like(test.labels, dtype=torch.uint8)))
        save_attack(folder / ATTACK, fitted, options_of(attack))
        write_report(folder / PAGE, _page(clock, name, fitted, seen, test))
        clock.write(folder, finished=True, stealth=seen.to_json(), poisoned=int((fitted.kinds == POISON).sum()))
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
            result={
                "data": str(folder),
                "stealth": seen.to_json(),
                "kinds": torch.bincount(fitted.kinds.long()).tolist(),
            },
            page=folder / PAGE,
        )


def _own_folder(out: Path, command: str) -> contextlib.AbstractContextManager[Path]:
    """Return a block with `out` as the folder of a data set that this command may write or replace.

    Raises:
        OutputError: it holds data of somebody else, which the poisoned ones would replace or mix with.
    """
    if not (out / RUN).exists() and any(out.glob("**/*.parquet")):
        raise OutputError(f"{out} holds parquet files that unbackdoor did not write; choose another --out")
    return report_folder(out, command)


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
