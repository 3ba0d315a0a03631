"""Image classifiers: victims of attacks, scanners that judge them, purifiers that repair them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from unbackdoor.attacks import AllToOne, Attack, load_attack, save_attack
from unbackdoor.bench.axes import NO_ATTACK, Axes, Precision, Source, read_axes
from unbackdoor.bench.cell import Cell, Domain, Label, Result
from unbackdoor.bench.located import Located
from unbackdoor.bench.pages import facts, repair_page, scan_page, victim_page, written_page
from unbackdoor.bench.worker import Cost, details_of, measured
from unbackdoor.data import DefenderData, ImageSet, draw_clean, read_images
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Evaluation, defense_effectiveness, evaluate
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME, WORK
from unbackdoor.models import load_model, save_model
from unbackdoor.models.mark import repaired_mark
from unbackdoor.options import bound_options, files_of, options_of, short_name
from unbackdoor.purify import Purifier
from unbackdoor.scan import Scanner
from unbackdoor.training import Recipe, Runtime, fit, new_network
from unbackdoor.training.resume import states

Method = Attack | Scanner | Purifier
Told = tuple[str, Mapping[str, Any]]
"""A method's label and its recipe."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all cells on one victim have in common."""

    source: Source
    network: partial[nn.Module]
    attack: Attack | None
    recipe: Recipe
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
class Treatment:
    """What is done with a victim."""

    setting: Setting
    method: Scanner | Purifier
    clean_size: int
    budget: float | None

    def runtime(self, given: Runtime) -> Runtime:
        """Return a runtime with the setting's seed and precision, and the budget."""
        return replace(self.setting.runtime(given), budget=self.budget)


class Images(Domain):
    """Image classifiers."""

    alike = (
        ("data", "network", "attack", "training", "precision", "method", "clean_size", "budget"),
        ("data", "network", "training", "precision", "method", "clean_size", "budget"),
        ("network", "method", "budget"),
    )

    def cells(self, grid: Located) -> list[Cell]:
        """Return the victims, each followed by what is done with it; seed by seed (see `Domain.cells`)."""
        axes = read_axes(grid)
        # A grid has few methods and many cells, and a method may name large files.
        told = {method: _told(method) for method in (*axes.attacks, *axes.scan, *axes.purify) if method}
        cells: dict[str, Cell] = {}
        for setting in _settings(axes):
            for cell in self._on_victim(setting, axes, told):
                cells.setdefault(cell.key, cell)
        return list(cells.values())

    def _on_victim(self, setting: Setting, axes: Axes, told: Mapping[Method, Told]) -> Iterator[Cell]:
        labels = _labels(setting, told)
        recipe = _victim_recipe(setting, told)
        victim = Cell(domain=self, kind="victim", labels=labels, recipe=recipe, work=setting)
        yield victim
        kinds: tuple[tuple[str, tuple[Scanner | Purifier, ...]], ...] = (("scan", axes.scan), ("purify", axes.purify))
        for kind, methods in kinds:
            for method, size in itertools.product(methods, axes.clean_sizes):
                name, options = told[method]
                yield Cell(
                    domain=self,
                    kind=kind,
                    labels={**labels, "method": name, "clean_size": size, "budget": axes.budget},
                    recipe={"method": options, "clean_size": size, "budget": axes.budget},
                    work=Treatment(setting=setting, method=method, clean_size=size, budget=axes.budget),
                    needs=victim,
                )

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Train, scan or repair a victim (see `Domain.run`)."""
        match cell:
            case Cell(kind="victim", work=Setting() as setting):
                return make_victim(cell, setting, folder, setting.runtime(runtime))
            case Cell(kind="scan", work=Treatment(method=Scanner()) as treatment):
                return scan_victim(cell, treatment, given, folder, treatment.runtime(runtime))
            case Cell(kind="purify", work=Treatment(method=Purifier()) as treatment):
                return purify_victim(cell, treatment, given, folder, treatment.runtime(runtime))
        raise InputError(f"a cell of kind {cell.kind!r} is none of image classifiers")


def make_victim(cell: Cell, setting: Setting, folder: Path, runtime: Runtime) -> Result:
    """Train a victim and measure it.

    Args:
        cell: with the hashes of files that were seen when the grid was read.
        setting: which victim.
        folder: for its files and for the states of an interrupted training.
        runtime: device, seed, precision.
    """
    if setting.attack and recipe_of(setting.attack) != cell.recipe["attack"]:
        raise InputError(f"{attack_name(setting.attack)}: a file that its options name is another one here")
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
        files[ATTACK] = folder / ATTACK
        mark = {"attack": options, "criterion": fitted.criterion.to_json()}
    save_model(folder / MODEL, network, provenance={"bench cell": cell.key}, backdoored=mark)
    told = facts(runtime, network=bound_options(setting.network), training=options_of(setting.recipe))
    page = partial(victim_page, cell.title, test, fitted, evaluation, history, told)
    files |= written_page(folder / PAGE, page)
    metrics = {**shares(evaluation), "rounds": history.epochs, **times(cost, resumed)}
    return Result(metrics=metrics, details={"evaluation": evaluation.to_json()}, files=files)


def purify_victim(cell: Cell, treatment: Treatment, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Repair a victim with what a defender has, then measure it with what only the bench has.

    Args:
        cell: for its title.
        treatment: how.
        given: the victim's files.
        folder: for files and for the state of an interrupted repair.
        runtime: device, seed, precision, budget.
    """
    assert isinstance(treatment.method, Purifier)
    train, test = treatment.setting.data()
    loaded = load_model(given / MODEL)
    resume = folder / RESUME
    resumed = bool(states(resume))
    with measured() as cost:
        clean = draw_clean(train, treatment.clean_size, runtime.seed)
        data = DefenderData(clean=clean)
        repaired, history = treatment.method.purify(loaded.network, data, runtime, resume)
    # From here on nothing reaches the method: measuring is not its work, so its time does not count either.
    before = Evaluation.from_json(details_of(given)["evaluation"])
    attack = load_attack(given / ATTACK) if before.asr is not None else None
    trigger, criterion = (attack.trigger, attack.criterion) if attack else (None, None)
    after = evaluate(repaired, test, runtime, trigger, criterion)
    metrics = {**shares(after), "rounds": history.epochs, **times(cost, resumed)}
    if attack:
        metrics["der"] = defense_effectiveness(before, after)
    made_by = {
        "parent": loaded.sha256,
        "method": options_of(treatment.method),
        "seed": runtime.seed,
        "clean samples": clean.digest(),
    }
    save_model(folder / MODEL, repaired, provenance=made_by, backdoored=repaired_mark(loaded.backdoored))
    told = facts(runtime, options=options_of(treatment.method), inputs=made_by)
    page = written_page(folder / PAGE, partial(repair_page, cell.title, before, after, history, told))
    sweeps = [sweep.to_json() for sweep in history.sweeps]
    details = {"evaluation": after.to_json(), "loss": history.loss, "sweeps": sweeps, "notes": list(history.notes)}
    files = {MODEL: folder / MODEL, **page}
    return Result(metrics=metrics, details=details, files=files, optional=frozenset({MODEL}))


def scan_victim(cell: Cell, treatment: Treatment, given: Path, folder: Path, runtime: Runtime) -> Result:
    """Scan a victim with what a defender has, then compare the verdict with what it is.

    Args:
        cell: for its title.
        treatment: how.
        given: the victim's files.
        folder: for the page.
        runtime: device, seed, precision, budget.

    Returns:
        `flagged`: 1 if the scanner calls the model backdoored, 0 if not, missing if it is inconclusive;
        `backdoored`: 1 if the model is; `target_first`: 1 if the class that the attacker wants is the first suspect,
        missing unless there is one such class.
    """
    assert isinstance(treatment.method, Scanner)
    train, _ = treatment.setting.data()
    loaded = load_model(given / MODEL)
    with measured() as cost:
        clean = draw_clean(train, treatment.clean_size, runtime.seed)
        finding = treatment.method.scan(loaded.network, DefenderData(clean=clean), runtime)
    # From here on nothing reaches the method.
    attack = load_attack(given / ATTACK) if treatment.setting.attack else None
    metrics = {**cost.to_metrics(), "anomaly": float(finding.anomaly.max()), "backdoored": float(attack is not None)}
    if finding.backdoored is not None:
        metrics["flagged"] = float(finding.backdoored)
    if attack and isinstance(attack.criterion, AllToOne):
        metrics["target_first"] = float(finding.suspected[:1] == (attack.criterion.target,))
    inputs = {"model": loaded.sha256, "clean samples": clean.digest()}
    told = facts(runtime, options=options_of(treatment.method), inputs=inputs)
    names = loaded.network.description.class_names
    page = partial(scan_page, cell.title, treatment.method, finding, names, attack, told)
    files = written_page(folder / PAGE, page)
    return Result(metrics=metrics, details={"finding": finding.to_json()}, files=files)


def times(cost: Cost, resumed: bool) -> dict[str, float]:
    """Return what a piece of work cost; of one that went on after an interruption only that it did."""
    return {"resumed": 1.0} if resumed else cost.to_metrics()


def shares(evaluation: Evaluation) -> dict[str, float]:
    """Return the measured shares and the ends of their intervals, by name."""
    found: dict[str, float] = {}
    for name, share in evaluation.to_json().items():
        found |= {name: share["value"], f"{name}_low": share["low"], f"{name}_high": share["high"]}
    return found


def _told(method: Method) -> Told:
    name = attack_name(method) if isinstance(method, Attack) else short_name(method)
    return name, recipe_of(method)


def recipe_of(method: Method) -> dict[str, Any]:
    """Return the name of a method, its options, and the SHA-256 of the files that these name."""
    return {**options_of(method), "files": files_of(method)}


def attack_name(attack: Attack | None) -> str:
    """Return the attack with the options that are not its defaults, but the poison rate."""
    return short_name(attack, frozenset({"poison_rate"})) if attack else NO_ATTACK


def _settings(axes: Axes) -> Iterator[Setting]:
    for seed, source, network, attack in itertools.product(axes.seeds, axes.sources, axes.networks, axes.attacks):
        yield Setting(
            source=source, network=network, attack=attack, recipe=axes.recipe, seed=seed, precision=axes.precision
        )


def _labels(setting: Setting, told: Mapping[Method, Told]) -> dict[str, Label]:
    """Return the labels of a victim; what is done with it has a method and what it is given, too."""
    return {
        "data": setting.source.name,
        "network": short_name(setting.network),
        "attack": told[setting.attack][0] if setting.attack else NO_ATTACK,
        "poison_rate": getattr(setting.attack, "poison_rate", None),
        "training": short_name(setting.recipe).removeprefix("Recipe").strip() or "default",
        "precision": setting.precision,
        "method": None,
        "clean_size": None,
        "budget": None,
        "seed": setting.seed,
    }


def _victim_recipe(setting: Setting, told: Mapping[Method, Told]) -> dict[str, Any]:
    return {
        "data": setting.source.digests,
        "network": bound_options(setting.network),
        "attack": told[setting.attack][1] if setting.attack else None,
        "recipe": options_of(setting.recipe),
        "seed": setting.seed,
        "precision": setting.precision,
    }


@lru_cache(maxsize=2)
def _read(source: Source) -> tuple[ImageSet, ImageSet]:
    """Read a data set once for all cells of a process."""
    train, test = read_images(source.source, "train"), read_images(source.source, "test")
    if (train.digest(), test.digest()) != source.digests:
        raise InputError(f"{source.source} has other images here than where the grid was read")
    return train, test
