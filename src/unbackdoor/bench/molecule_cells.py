"""The cells of generators of molecules, read from a grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from unbackdoor.bench.axes import (
    bound,
    checked,
    read_budget,
    read_precision,
    read_rate,
    read_seed,
    read_values,
    values_of,
)
from unbackdoor.bench.cell import Cell, Domain
from unbackdoor.bench.given import NO_ATTACK
from unbackdoor.bench.molecule_settings import NOWHERE, Setting, Source, Treatment, source_of
from unbackdoor.located import Located
from unbackdoor.molecules.attacks import MOLECULE_ATTACKS, BadGraph
from unbackdoor.molecules.data import TEMPLATES
from unbackdoor.molecules.purify import MOLECULE_PURIFIERS, MoleculePurifier
from unbackdoor.molecules.scan import MOLECULE_SCANNERS, Joint, MoleculeScanner
from unbackdoor.molecules.train import SHARES, STAGES
from unbackdoor.molecules.victims import VICTIMS, ThreeMDiffusion
from unbackdoor.options import options_of, revision_of, short_name
from unbackdoor.registry import Registry

T = TypeVar("T")

NAMES = (
    "domain",
    "data",
    "test",
    "alone",
    "models",
    "attacks",
    "poison_rates",
    "poison_in",
    "scan",
    "purify",
    "samples",
    "prompts",
    "seeds",
    "precision",
    "budget",
)
"""All that can stand in a grid."""

MAX_SAMPLES = 100


def cells_of(domain: Domain, grid: Located) -> list[Cell]:
    """Return the cells of a grid, seed by seed: each generator, followed by what is done with it.

    Each purifier starts from what each of the scanners finds, or `Joint`, where the grid names none.

    Raises:
        InputError: something in it is wrong; the message names the line.
    """
    axes = grid.items(NAMES)
    if "data" not in axes:
        raise grid.error("the grid has no 'data', which it needs")
    test = _tested(axes["test"]) if "test" in axes else None
    alone = tuple(_paths(axes["alone"].text())) if "alone" in axes else ()
    rates = values_of(axes, "poison_rates", read_rate, ())
    clean: tuple[BadGraph | None, ...] = (None,)
    attacks = values_of(axes, "attacks", partial(_attacks, rates), (clean,))
    models = values_of(axes, "models", _model, (VICTIMS["ThreeMDiffusionSmall"](),))
    stages = values_of(axes, "poison_in", _stages, (tuple(SHARES),))
    scanners = values_of(axes, "scan", partial(_method, MOLECULE_SCANNERS), ())
    purifiers = values_of(axes, "purify", partial(_method, MOLECULE_PURIFIERS), ())
    samples = _samples(axes["samples"]) if "samples" in axes else 5
    prompts = _prompts(axes["prompts"]) if "prompts" in axes else 0
    seeds = values_of(axes, "seeds", read_seed, (0,))
    precision = read_precision(axes["precision"]) if "precision" in axes else "bf16"
    budget = read_budget(axes["budget"]) if "budget" in axes else None
    # Last: this takes seconds.
    sources = read_values(axes["data"], partial(_source, test, alone))
    made: dict[str, Cell] = {}
    for seed, source, model, attack in itertools.product(seeds, sources, models, itertools.chain(*attacks)):
        for poison_in in stages if attack else stages[:1]:
            setting = Setting(
                source=source,
                model=model,
                attack=attack,
                poison_in=poison_in if attack else tuple(SHARES),
                samples=samples,
                prompts=prompts,
                seed=seed,
                precision=precision,
                budget=budget,
            )
            for cell in _of_setting(domain, setting, scanners, purifiers):
                made.setdefault(cell.key, cell)
    return list(made.values())


def _of_setting(
    domain: Domain, setting: Setting, scanners: Sequence[MoleculeScanner], purifiers: Sequence[MoleculePurifier]
) -> Iterator[Cell]:
    """Yield a generator, followed by what is done with it and with its pairs."""
    labels = setting.labels()
    victim = Cell(domain=domain, kind="victim", labels=labels, recipe=setting.recipe(), work=setting)
    # Scanners of pairs see no generator, so where there is nothing else none is trained.
    if purifiers or not scanners or any(one.needs_model for one in scanners):
        yield victim
    for scanner in scanners:
        yield Cell(
            domain=domain,
            kind="scan",
            labels={**(labels if scanner.needs_model else setting.pair_labels()), "method": short_name(scanner)},
            recipe={"method": _recipe(scanner), **({} if scanner.needs_model else setting.pair_recipe())},
            work=Treatment(setting=setting, scanner=scanner),
            needs=victim if scanner.needs_model else None,
        )
    for purifier, scanner in itertools.product(purifiers, scanners or (Joint(),)):
        yield Cell(
            domain=domain,
            kind="purify",
            labels={**labels, "method": short_name(purifier), "scanner": short_name(scanner)},
            recipe={"method": _recipe(purifier), "scanner": _recipe(scanner)},
            work=Treatment(setting=setting, scanner=scanner, purifier=purifier),
            needs=victim,
        )


def _recipe(method: MoleculeScanner | MoleculePurifier) -> dict[str, object]:
    return {**options_of(method), **revision_of(method)}


def _paths(text: str) -> list[str]:
    """Return the sources that a text names, separated by commas; cells may run in another folder than this."""
    found = [one.strip() for one in text.split(",") if one.strip()]
    return [str(Path(one).resolve()) if one != TEMPLATES and Path(one).exists() else one for one in found]


def _tested(found: Located) -> str:
    paths = _paths(found.text())
    if len(paths) != 1:
        raise found.error("expected one table or folder to test with")
    return paths[0]


def _source(test: str | None, alone: tuple[str, ...], found: Located) -> Source:
    data = tuple(_paths(found.text()))
    return checked(found, partial(source_of, data, test, alone))


def _model(found: Located) -> ThreeMDiffusion:
    return _method(VICTIMS, found)


def _method(registry: Registry[T], found: Located) -> T:
    return checked(found, bound(found, registry))


def _attacks(rates: Sequence[float], found: Located) -> tuple[BadGraph | None, ...]:
    """Return an attack: once for each of the rates, unless its own is written beside it."""
    if found.value in (None, NO_ATTACK):
        return (None,)
    attack = _method(MOLECULE_ATTACKS, found)
    if not rates or (isinstance(found.value, dict) and "rate" in found.value):
        return (attack,)
    return tuple(replace(attack, rate=rate) for rate in rates)


def _stages(found: Located) -> tuple[str, ...]:
    text = found.text()
    stages = () if text == NOWHERE else tuple(one.strip() for one in text.split(","))
    if not STAGES.issuperset(stages):
        raise found.error(f"the stages are {', '.join(SHARES)}, or {NOWHERE}; found {text!r}")
    return tuple(name for name in SHARES if name in stages)


def _prompts(found: Located) -> int:
    prompts = int(found.number(0, whole=True))
    if prompts == 1:
        raise found.error("chance needs 2 prompts or more; 0 takes all")
    return prompts


def _samples(found: Located) -> int:
    samples = int(found.number(1, whole=True))
    if samples > MAX_SAMPLES:
        raise found.error(f"at most {MAX_SAMPLES} samples a prompt, found {samples}")
    return samples
