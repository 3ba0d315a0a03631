"""Image classifiers: victims of attacks, scanners that judge them, purifiers that repair them.

And the data that attacks poison: sifters that look for the poison in them, trainers that keep it out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from unbackdoor.attacks import AllToOne, Attack, SavedAttack, load_attack
from unbackdoor.bench.axes import Axes, read_axes
from unbackdoor.bench.cell import Cell, Domain, Label, Result
from unbackdoor.bench.given import NO_ATTACK, THERE
from unbackdoor.bench.pages import facts, repair_page, scan_page, written_page
from unbackdoor.bench.poisoned import untrusted_data
from unbackdoor.bench.rating import rating
from unbackdoor.bench.untrusted import DEFENCES, Defence, poison_data, uses_quick_model
from unbackdoor.bench.victims import (
    Given,
    Method,
    Trained,
    Victim,
    attack_name,
    make_victim,
    recipe_of,
    shares,
    take_victim,
    times,
)
from unbackdoor.bench.worker import details_of, measured
from unbackdoor.bench.zoo import LEAST_SUCCESS
from unbackdoor.data import DefenderData, draw_clean
from unbackdoor.errors import InputError
from unbackdoor.evaluate import Evaluation, evaluate
from unbackdoor.folder import ATTACK, MODEL, PAGE, RESUME
from unbackdoor.located import Located
from unbackdoor.models import LoadedModel, load_model, save_model
from unbackdoor.models.mark import repaired_mark
from unbackdoor.options import bound_options, options_of, short_name
from unbackdoor.purify import Purifier
from unbackdoor.scan import Scanner
from unbackdoor.sift.quick_model import NETWORK as QUICK
from unbackdoor.sift.quick_model import RECIPE as QUICKLY
from unbackdoor.training import Runtime
from unbackdoor.training.resume import states

Told = tuple[str, Mapping[str, Any]]
"""A method's label and its recipe."""


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done with a victim."""

    setting: Victim
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
        """Return what is done with each attack; seed by seed (see `Domain.cells`)."""
        axes = read_axes(grid)
        # A grid has few methods and many cells, and a method may name large files.
        methods = (*axes.attacks, *axes.scan, *axes.purify, *axes.sift, *axes.secure)
        told = {method: _told(method) for method in methods if method}
        cells: dict[str, Cell] = {}
        for setting in _settings(axes):
            # Sifters see data and no victim, so where there is nothing else none is trained.
            only_sifted = axes.sift and not (axes.scan or axes.purify or axes.secure)
            on_victim = iter(()) if only_sifted else self._on_victim(setting, axes, told)
            for cell in itertools.chain(on_victim, self._on_data(setting, axes, told)):
                cells.setdefault(cell.key, cell)
        return list(cells.values())

    def _on_victim(self, setting: Victim, axes: Axes, told: Mapping[Method, Told]) -> Iterator[Cell]:
        """Yield a victim, followed by what is done with it."""
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

    def _on_data(self, setting: Victim, axes: Axes, told: Mapping[Method, Told]) -> Iterator[Cell]:
        """Yield poisoned data, followed by what is done with them."""
        if not axes.sift and not axes.secure:
            return
        labels = _labels(setting, told)
        if isinstance(setting, Trained):
            labels["training"] = None
        poison = Cell(domain=self, kind="poison", labels=labels, recipe=_poison_recipe(setting, told), work=setting)
        yield poison
        labels = {**labels, "budget": axes.budget}
        quick = Cell(
            domain=self,
            kind="quick",
            labels=labels,
            recipe={"budget": axes.budget, "training": options_of(QUICKLY), "network": bound_options(QUICK)},
            work=Defence(setting=setting, budget=axes.budget),
            needs=poison,
        )
        if any(map(uses_quick_model, axes.sift)):
            yield quick
        for sifter in axes.sift:
            name, options = told[sifter]
            yield Cell(
                domain=self,
                kind="sift",
                labels={**labels, "method": name},
                recipe={"method": options, "budget": axes.budget},
                work=Defence(setting=setting, method=sifter, budget=axes.budget),
                needs=quick if uses_quick_model(sifter) else poison,
            )
        network = setting.network if isinstance(setting, Trained) else setting.model.untrained
        for trainer in axes.secure:
            name, options = told[trainer]
            for size in axes.clean_sizes if "clean" in trainer.needs else (None,):
                assert network is not None
                recipe = {"method": options, "clean_size": size, "budget": axes.budget}
                yield Cell(
                    domain=self,
                    kind="secure",
                    labels={**labels, "method": name, "clean_size": size},
                    recipe={**recipe, "network": bound_options(network)},
                    work=Defence(setting=setting, method=trainer, network=network, clean_size=size, budget=axes.budget),
                    needs=poison,
                )

    def run(self, cell: Cell, given: Path, folder: Path, runtime: Runtime) -> Result:
        """Do one of the things that `cells` names (see `Domain.run`)."""
        match cell:
            case Cell(kind="victim", work=Trained() as setting):
                return make_victim(cell, setting, folder, setting.runtime(runtime))
            case Cell(kind="victim", work=Given() as setting):
                return take_victim(cell, setting, folder, setting.runtime(runtime))
            case Cell(kind="scan", work=Treatment(method=Scanner()) as treatment):
                return scan_victim(cell, treatment, given, folder, treatment.runtime(runtime))
            case Cell(kind="purify", work=Treatment(method=Purifier()) as treatment):
                return purify_victim(cell, treatment, given, folder, treatment.runtime(runtime))
            case Cell(kind="poison", work=Trained() | Given() as setting):
                return poison_data(cell, setting, folder, setting.runtime(runtime))
            case Cell(work=Defence() as task) if cell.kind in DEFENCES:
                return DEFENCES[cell.kind](cell, task, given, folder, task.runtime(runtime))
        raise InputError(f"a cell of kind {cell.kind!r} is none of image classifiers")


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
    attack = load_attack(given / ATTACK) if (given / ATTACK).exists() else None
    untrusted = untrusted_data(train, given)[0] if "untrusted" in treatment.method.needs else None
    with measured() as cost:
        clean = draw_clean(train, treatment.clean_size, runtime.seed)
        data = DefenderData(clean=clean, untrusted=untrusted)
        repaired, history = treatment.method.purify(loaded.network, data, runtime, resume)
    # From here on nothing reaches the method: measuring is not its work, so its time does not count either.
    before = Evaluation.from_json(details_of(given)["evaluation"])
    trigger, criterion = (attack.trigger, attack.criterion) if attack else (None, None)
    after = evaluate(repaired, test, runtime, trigger, criterion)
    metrics = {**shares(after), "rounds": history.epochs, **times(cost, resumed)}
    if attack:
        metrics |= rating(shares(before), shares(after))
    made_by = {
        "parent": loaded.sha256,
        "method": options_of(treatment.method),
        "seed": runtime.seed,
        "clean samples": clean.digest(),
        **({"untrusted data": untrusted.digest()} if untrusted else {}),
    }
    save_model(folder / MODEL, repaired, provenance=made_by, backdoored=repaired_mark(loaded.backdoored))
    told = facts(runtime, options=options_of(treatment.method), inputs=made_by)
    page = written_page(folder / PAGE, partial(repair_page, cell.title, before, after, history, told))
    sweeps = [sweep.to_json() for sweep in history.sweeps]
    details = {
        "evaluation": after.to_json(),
        "loss": history.loss,
        "candidates": [candidate.to_json() for candidate in history.candidates],
        "sweeps": sweeps,
        "notes": list(history.notes),
    }
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
        `backdoored`: 1 if the model is, 0 if not, missing if nobody knows (see `truth_of`); `target_first`: 1 if the
        class that the attacker wants is the first suspect, missing unless there is one such class.
    """
    assert isinstance(treatment.method, Scanner)
    train, _ = treatment.setting.data()
    loaded = load_model(given / MODEL)
    with measured() as cost:
        clean = draw_clean(train, treatment.clean_size, runtime.seed)
        finding = treatment.method.scan(loaded.network, DefenderData(clean=clean), runtime)
    # From here on nothing reaches the method.
    attack = load_attack(given / ATTACK) if (given / ATTACK).exists() else None
    truth = truth_of(loaded, attack, Evaluation.from_json(details_of(given)["evaluation"]))
    metrics = {**cost.to_metrics(), "anomaly": float(finding.anomaly.max())}
    if truth is not None:
        metrics["backdoored"] = float(truth)
    if finding.backdoored is not None:
        metrics["flagged"] = float(finding.backdoored)
    if truth and attack and isinstance(attack.criterion, AllToOne):
        metrics["target_first"] = float(finding.suspected[:1] == (attack.criterion.target,))
    inputs = {"model": loaded.sha256, "clean samples": clean.digest()}
    told = facts(runtime, options=options_of(treatment.method), inputs=inputs)
    names = loaded.network.description.class_names
    page = partial(scan_page, cell.title, treatment.method, finding, names, attack, truth, told)
    files = written_page(folder / PAGE, page)
    return Result(metrics=metrics, details={"finding": finding.to_json()}, files=files)


def truth_of(loaded: LoadedModel, attack: SavedAttack | None, measured: Evaluation) -> bool | None:
    """Return whether a model is backdoored, or None if nobody knows.

    Without its attack a model whose mark says that it is backdoored is not clean, and with an attack that hardly works
    it is neither: to call such a model backdoored is no false alarm, and to call it clean is no miss.
    """
    if attack is None or measured.asr is None:
        return None if loaded.backdoored else False
    return True if measured.asr.value >= LEAST_SUCCESS else None


def _told(method: Method) -> Told:
    name = attack_name(method) if isinstance(method, Attack) else short_name(method)
    return name, recipe_of(method)


def _settings(axes: Axes) -> Iterator[Victim]:
    for seed, source in itertools.product(axes.seeds, axes.sources):
        for network, attack in itertools.product(axes.networks, axes.attacks):
            yield Trained(
                source=source, network=network, attack=attack, recipe=axes.recipe, seed=seed, precision=axes.precision
            )
        for model in axes.models:
            yield Given(source=source, model=model, seed=seed, precision=axes.precision)


def _labels(setting: Victim, told: Mapping[Method, Told]) -> dict[str, Label]:
    """Return the labels of a victim; what is done with it has a method and what it is given, too."""
    return {
        "data": setting.source.name,
        **_made(setting, told),
        "precision": setting.precision,
        "method": None,
        "clean_size": None,
        "budget": None,
        "seed": setting.seed,
    }


def _made(setting: Victim, told: Mapping[Method, Told]) -> dict[str, Label]:
    """Return the labels that say how a victim came to be."""
    match setting:
        case Trained():
            return {
                "network": short_name(setting.network),
                "attack": told[setting.attack][0] if setting.attack else NO_ATTACK,
                "poison_rate": getattr(setting.attack, "poison_rate", None),
                "training": short_name(setting.recipe).removeprefix("Recipe").strip() or "default",
            }
        case Given(model=model):
            return {
                "network": model.network,
                "attack": model.attack_name,
                "poison_rate": model.poison_rate,
                "training": f"{THERE}{model.name}",
            }


def _poison_recipe(setting: Victim, told: Mapping[Method, Told]) -> dict[str, Any]:
    """Return all that decides what an attack makes of the training data."""
    common = {"data": setting.source.digests, "seed": setting.seed, "precision": setting.precision}
    match setting:
        case Trained(network=network, attack=Attack() as attack):
            # Some attacks look for their trigger with the help of such a network.
            return {**common, "network": bound_options(network), "attack": told[attack][1]}
        case Trained():
            return {**common, "attack": None}
        case Given(model=model):
            return {**common, "given attack": model.attack_sha256}


def _victim_recipe(setting: Victim, told: Mapping[Method, Told]) -> dict[str, Any]:
    """Return all that decides what a victim is."""
    common = {"data": setting.source.digests, "seed": setting.seed, "precision": setting.precision}
    match setting:
        case Trained():
            attack = told[setting.attack][1] if setting.attack else None
            network, recipe = bound_options(setting.network), options_of(setting.recipe)
            return {**common, "network": network, "attack": attack, "recipe": recipe}
        case Given(model=model):
            return {**common, "model": model.model_sha256, "given attack": model.attack_sha256}
