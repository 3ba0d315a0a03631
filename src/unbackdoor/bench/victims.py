"""Victims of a grid of image classifiers: trained by it, or given to it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacks import Attack, load_attack, save_attack
from unbackdoor.attacks.saved import MOST_BYTES
from unbackdoor.bench.axes import Precision, Source
from unbackdoor.bench.cell import Cell, Result
from unbackdoor.bench.given import NO_ATTACK, GivenModel
from unbackdoor.bench.pages import facts, victim_page, written_page
from unbackdoor.bench.poisoned import kept_rows
from unbackdoor.bench.worker import Cost, measured
from unbackdoor.data import ImageSet, read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Evaluation, evaluate
from unbackdoor.files import read_bytes, write_bytes
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME, WORK
from unbackdoor.models import load_model, save_model
from unbackdoor.options import bound_options, files_of, options_of, revision_of, short_name
from unbackdoor.purify import Purifier
from unbackdoor.scan import Scanner
from unbackdoor.secure import SecureTrainer
from unbackdoor.sift import Sifter
from unbackdoor.training import Recipe, Runtime, fit, new_network


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells on one victim have in common.

    Attributes:
        source: data.
        seed: of all that is drawn.
        precision: of all that is computed.
    """

    source: Source
    seed: int
    precision: Precision

    def data(self) -> tuple[ImageSet, ImageSet]:
        """Return training and test images.

        Raises:
            InputError: they are others than when the grid was read.
        """
        return _read(self.source)

    def runtime(self, given: Runtime) -> Runtime:
        """Return a runtime with this setting's seed and precision."""
        return replace(given, seed=self.seed, precision=self.precision)


@dataclass(frozen=True, kw_only=True)
class Trained(Setting):
    """A victim that the grid trains.

    Attributes:
        network: class with its options.
        attack: None: trained on clean data.
        recipe: how it is trained.
    """

    network: partial[nn.Module]
    attack: Attack | None
    recipe: Recipe


@dataclass(frozen=True, kw_only=True)
class Given(Setting):
    """A victim that is there already.

    Attributes:
        model: which.
    """

    model: GivenModel


Victim = Trained | Given

Method = Attack | Scanner | Purifier | Sifter | SecureTrainer


def make_victim(cell: Cell, setting: Trained, folder: Path, runtime: Runtime) -> Result:
    """Train a victim and measure it.

    Args:
        cell: with the hashes of files that were seen when the grid was read.
        setting: which victim.
        folder: for its files and for the states of an interrupted training.
        runtime: device, seed, precision.
    """
    if setting.attack:
        check_attack(setting.attack, cell)
    train, test = setting.data()
    resume, preparation = folder / RESUME, folder / WORK
    resumed = resume.exists() or preparation.exists()
    build = partial(new_network, setting.network, train, runtime)
    network = build()
    with measured() as cost:
        fitted = setting.attack.prepare(train, build, runtime, preparation) if setting.attack else None
        data, hook = (fitted.train, fitted.hook) if fitted else (train, None)
        history = fit(network, data, setting.recipe, runtime, hook=hook, resume=resume)
    trigger, criterion = (fitted.trigger, fitted.criterion) if fitted else (None, None)
    evaluation = evaluate(network, test, runtime, trigger, criterion)
    files, mark = {MODEL: folder / MODEL}, None
    if fitted and setting.attack:
        options = options_of(setting.attack)
        save_attack(folder / ATTACK, fitted, options)
        files |= {ATTACK: folder / ATTACK, **kept_rows(fitted, train, folder)}
        mark = {"attack": options, "criterion": fitted.criterion.to_json()}
    save_model(folder / MODEL, network, provenance={"bench cell": cell.key}, backdoored=mark)
    told = facts(runtime, network=bound_options(setting.network), training=options_of(setting.recipe))
    page = partial(victim_page, cell.title, test, fitted, evaluation, history, told)
    files |= written_page(folder / PAGE, page)
    metrics = {**shares(evaluation), "rounds": history.epochs, **times(cost, resumed)}
    return Result(metrics=metrics, details={"evaluation": evaluation.to_json()}, files=files)


def take_victim(cell: Cell, setting: Given, folder: Path, runtime: Runtime) -> Result:
    """Measure a model that is there already.

    Args:
        cell: with the hashes of the files that were seen when the grid was read.
        setting: which model.
        folder: for its files.
        runtime: device, seed, precision.
    """
    named = setting.model
    loaded = load_model(named.model)
    saved = load_attack(named.attack) if named.attack else None
    if (loaded.sha256, saved.sha256 if saved else "") != (named.model_sha256, named.attack_sha256):
        raise InputError(f"{named.model}, or its attack, is another file here than when the grid was read")
    _, test = setting.data()
    trigger, criterion = (saved.trigger, saved.criterion) if saved else (None, None)
    with measured() as cost:
        evaluation = evaluate(loaded.network, test, runtime, trigger, criterion)
    save_model(folder / MODEL, loaded.network, provenance=loaded.provenance, backdoored=loaded.backdoored)
    files = {MODEL: folder / MODEL}
    if named.attack:
        write_bytes(folder / ATTACK, read_bytes(named.attack, MOST_BYTES))
        files[ATTACK] = folder / ATTACK
    told = facts(runtime, model={"file": named.model.name, "SHA-256": named.model_sha256})
    files |= written_page(folder / PAGE, partial(victim_page, cell.title, test, saved, evaluation, None, told))
    metrics = {**shares(evaluation), **cost.to_metrics()}
    return Result(metrics=metrics, details={"evaluation": evaluation.to_json()}, files=files)


def times(cost: Cost, resumed: bool) -> dict[str, float]:
    """Return what a piece of work cost; of one that went on after an interruption no time, as only a part is known."""
    known = cost.to_metrics()
    if resumed:
        del known["seconds"], known["cpu_seconds"]
        known["resumed"] = 1.0
    return known


def shares(evaluation: Evaluation) -> dict[str, float]:
    """Return the measured shares and the ends of their intervals, by name."""
    found: dict[str, float] = {}
    for name, share in evaluation.to_json().items():
        found |= {name: share["value"], f"{name}_low": share["low"], f"{name}_high": share["high"]}
    return found


def check_attack(attack: Attack, cell: Cell) -> None:
    """Raise InputError if a file that the attack names is another one than when the grid was read."""
    if recipe_of(attack) != cell.recipe["attack"]:
        raise InputError(f"{attack_name(attack)}: a file that its options name is another one here")


def recipe_of(method: Method) -> dict[str, Any]:
    """Return what decides what a method does: name, options, SHA-256 of the files that these name, and its revision."""
    return {**options_of(method), "files": files_of(method), **revision_of(method)}


def attack_name(attack: Attack | None) -> str:
    """Return the attack with the options that are not its defaults, but the poison rate."""
    return short_name(attack, frozenset({"poison_rate"})) if attack else NO_ATTACK


@lru_cache(maxsize=1)
def _read(source: Source) -> tuple[ImageSet, ImageSet]:
    """Read a data set once for all cells of a process that follow each other on it.

    No more than one is kept: another one would count as memory of the cell that is measured.
    """
    train, test = read_images(source.source, "train"), read_images(source.source, "test")
    if (train.digest(), test.digest()) != source.digests:
        raise InputError(f"{source.source} has other images here than where the grid was read")
    return train, test
