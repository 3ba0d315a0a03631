"""Show what every attack does to your images, on one page, with how visible it is.

Writes report.html and run.json. Attacks that learn their trigger learn it here from a part of the images, in a short
training: a look at them, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from unbackdoor.attacks import ATTACKS, Attack, FittedAttack, Poisoning, Stealth
from unbackdoor.commands.outcome import Outcome
from unbackdoor.commands.parsing import OWN_NETWORK
from unbackdoor.commands.stealth import stealth_rows, visibility
from unbackdoor.commands.workspace import Run, remove_work, report_folder
from unbackdoor.data import ImageSet, balanced_rows, read_images
from unbackdoor.errors import InputError, UnbackdoorError
from unbackdoor.folder import PAGE, WORK
from unbackdoor.models import Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.report import Gallery, Report, trigger_gallery, write_report
from unbackdoor.training import Recipe, Runtime, check_fits, fit, new_network

CHOICES = {"model": OWN_NETWORK}

NETWORK: partial[PreActResNet18] = partial(PreActResNet18, width=16)
"""If none is named: a look at the attacks is worth minutes, and at the papers' width takes nine times as many."""

LEARNING = Recipe(epochs=3, learning_rate=0.05, ema=0.0, low_resolution=0.0)
"""Of the attacks that learn their trigger together with a classifier."""


def run(
    *,
    data: str,
    model: Callable[[int, int], nn.Module] | None = None,
    out: Path = Path("runs/gallery"),
    images: int = 5000,
    runtime: Runtime,
) -> Outcome:
    """Show all attacks on one page.

    Args:
        data: your images: digits, a folder (parquet or a folder a class), an .npz, or a hub id.
        model: the network of attacks that look for their trigger in a model, or learn it with one; a PreActResNet18 of
            width 16 if none is named.
        out: folder for the page; an earlier gallery in it is replaced.
        images: training images, at most, from which triggers are learned.
        runtime: device, seed, progress.
    """
    clock = Run("gallery", runtime)
    train, test = read_images(data, "train"), read_images(data, "test")
    with report_folder(out, clock.command) as folder:
        if images < train.classes:
            raise InputError(f"--images must be at least the number of classes, {train.classes}; found {images}")
        part = train.subset(balanced_rows(train.labels, min(images, len(train)), runtime.seed))
        clock.inputs = {train.name: train.digest(), test.name: test.digest()}
        # States of an interrupted gallery of other images.
        remove_work(folder / WORK)

        def build() -> Network:
            return new_network(model or NETWORK, part, runtime)

        check_fits(build(), part, test)
        galleries, seen, refused = [], {}, {}
        for name in ATTACKS:
            try:
                attack = shown(ATTACKS[name], part)
                # The folder is common to all: the clean model that several look into is trained once.
                fitted = attack.prepare(part, build, runtime, folder / WORK)
                if fitted.learns:
                    fit(build(), part, LEARNING, runtime, hook=fitted.hook, description=name)
                seen[name] = visibility(test, fitted)
                galleries.append(_gallery(name, test, fitted, seen[name]))
            except UnbackdoorError as error:
                refused[name] = str(error)
        page = Report(
            title=f"All attacks on {test.name.split('/')[0]}",
            galleries=galleries,
            facts=clock.facts(),
            notes=[f"{name} is not shown: {reason}." for name, reason in refused.items()],
        )
        write_report(folder / PAGE, page)
        clock.write(folder, stealth={name: one.to_json() for name, one in seen.items()}, refused=refused)
        remove_work(folder / WORK)
        return Outcome(
            title=page.title,
            rows=[*_rows(seen, refused), ("time", f"{clock.seconds:.0f} s")],
            result={"stealth": {name: one.to_json() for name, one in seen.items()}, "refused": refused},
            page=folder / PAGE,
        )


def _rows(seen: Mapping[str, Stealth], refused: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what the table says of each attack."""
    return [
        *((name, ", ".join(f"{what} {value}" for what, value in stealth_rows(one))) for name, one in seen.items()),
        *((name, f"not shown: {reason}") for name, reason in refused.items()),
    ]


def shown(method: type[Attack], images: ImageSet) -> Attack:
    """Return the attack with its default options, and with a rate that half of the target class can bear."""
    attack = method()
    if isinstance(attack, Poisoning) and attack.labels == "clean":
        share = float((images.labels == attack.target).float().mean())
        return replace(attack, poison_rate=min(attack.poison_rate, share / 2))
    return attack


def _gallery(name: str, test: ImageSet, fitted: FittedAttack, seen: Stealth) -> Gallery:
    """Return the pictures of one attack, with how visible it is."""
    pictures = trigger_gallery(test, fitted.trigger, fitted.criterion)
    figures = "; ".join(f"{what}: {value}" for what, value in stealth_rows(seen))
    return replace(pictures, title=name, explanation=figures)
