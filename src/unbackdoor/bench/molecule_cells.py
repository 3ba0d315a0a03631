"""The cells of generators of molecules, read from a grid."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from unbackdoor.bench.axes import (
    Precision,
    bound,
    checked,
    read_budget,
    read_precision,
    read_rate,
    read_seed,
    read_values,
    values_of,
)
from unbackdoor.bench.cell import Cell, Domain, Label
from unbackdoor.bench.given import NO_ATTACK
from unbackdoor.errors import InputError
from unbackdoor.located import Located
from unbackdoor.molecules.attacks import MOLECULE_ATTACKS, BadGraph
from unbackdoor.molecules.data import TEMPLATES, Alone, Pairs, Table, filter_pairs, molecules_alone, training_rows
from unbackdoor.molecules.train import SHARES, STAGES, digest_of
from unbackdoor.molecules.victims import VICTIMS, ThreeMDiffusion
from unbackdoor.options import file_digest, options_of, revision_of, short_name
from unbackdoor.training import Runtime

NAMES = (
    "domain",
    "data",
    "test",
    "alone",
    "models",
    "attacks",
    "poison_rates",
    "poison_in",
    "samples",
    "prompts",
    "seeds",
    "precision",
    "budget",
)
"""All that can stand in a grid."""

NOWHERE = "none"
"""In place of stages: a clean control."""

MAX_SAMPLES = 100


@dataclass(frozen=True)
class Source:
    """Pairs to train on and to test with.

    Attributes:
        data: sources of the pairs, see `training_rows`.
        test: source of the test pairs, or None.
        alone: sources of molecules without texts.
        name: of the pairs.
        tested: name of the test pairs.
        digests: SHA-256 of training rows, test pairs and molecules without texts.
    """

    data: tuple[str, ...]
    test: str | None
    alone: tuple[str, ...]
    name: str
    tested: str
    digests: tuple[str, str, str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a generator is made and measured.

    Attributes:
        source: pairs.
        model: sizes and schedules.
        attack: None: clean.
        poison_in: stages that see the poisoned pairs.
        samples: molecules for each prompt.
        prompts: how many test prompts, the first ones; 0: all.
        seed: of everything drawn.
        precision: of everything computed.
        budget: minutes of training; None: the model's own schedule.
    """

    source: Source
    model: ThreeMDiffusion
    attack: BadGraph | None
    poison_in: tuple[str, ...]
    samples: int
    prompts: int
    seed: int
    precision: Precision
    budget: float | None

    def runtime(self, given: Runtime) -> Runtime:
        """Return a runtime with the setting's seed, precision and budget."""
        return replace(given, seed=self.seed, precision=self.precision, budget=self.budget)

    def labels(self) -> dict[str, Label]:
        """Return what people tell it apart by."""
        model = short_name(self.model)
        return {
            "data": self.source.name,
            "test": self.source.tested,
            "model": model,
            "attack": NO_ATTACK if self.attack is None else short_name(self.attack, frozenset({"rate"})),
            "poison_rate": None if self.attack is None else self.attack.rate,
            "poison_in": None if self.attack is None or len(self.poison_in) == len(SHARES) else told(self.poison_in),
            "precision": self.precision,
            "budget": self.budget,
            "seed": self.seed,
        }

    def recipe(self) -> dict[str, Any]:
        """Return all that decides the result."""
        folder = self.model.text_model
        return {
            "data": self.source.digests,
            "model": {**options_of(self.model), **revision_of(self.model)},
            "text model": None if folder is None else file_digest("text_model", folder),
            "attack": None if self.attack is None else {**options_of(self.attack), **revision_of(self.attack)},
            "poison in": self.poison_in,
            "samples": self.samples,
            "prompts": self.prompts,
            "seed": self.seed,
            "precision": self.precision,
            "budget": self.budget,
        }


def told(stages: Sequence[str]) -> str:
    """Return stages as a grid names them."""
    return ",".join(stages) or NOWHERE


def cells_of(domain: Domain, grid: Located) -> list[Cell]:
    """Return the cells of a grid, seed by seed.

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
            cell = Cell(domain=domain, kind="victim", labels=setting.labels(), recipe=setting.recipe(), work=setting)
            made.setdefault(cell.key, cell)
    return list(made.values())


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


def source_of(data: tuple[str, ...], test: str | None, alone: tuple[str, ...]) -> Source:
    """Return pairs to train on and to test with, read once to know them again.

    Args:
        data: see `Source`.
        test: see `Source`.
        alone: see `Source`.

    Raises:
        DataError: they cannot be read.
    """
    table, pairs, others = _of(data, test, alone)
    digests = (table.digest(), pairs.digest(), digest_of(others.smiles))
    return Source(data, test, alone, table.name, pairs.name, digests)


@lru_cache(maxsize=2)
def _of(data: tuple[str, ...], test: str | None, alone: tuple[str, ...]) -> tuple[Table, Pairs, Alone]:
    """Read pairs once for all cells of a process."""
    table, tested = training_rows(data, test)
    pairs, _ = filter_pairs(table)
    return table, tested, molecules_alone(alone, pairs, tested)


def read_source(source: Source) -> tuple[Table, Pairs, Alone]:
    """Read the pairs of a source; the same ones every time.

    Returns:
        Rows to train on, pairs to test with, molecules without texts.

    Raises:
        InputError: they are not those that the source was made for.
    """
    table, tested, alone = _of(source.data, source.test, source.alone)
    if (table.digest(), tested.digest(), digest_of(alone.smiles)) != source.digests:
        raise InputError(f"{source.name} has other pairs here than where the grid was read")
    return table, tested, alone


def _model(found: Located) -> ThreeMDiffusion:
    return checked(found, bound(found, VICTIMS))


def _attacks(rates: Sequence[float], found: Located) -> tuple[BadGraph | None, ...]:
    """Return an attack: once for each of the rates, unless its own is written beside it."""
    if found.value in (None, NO_ATTACK):
        return (None,)
    attack = checked(found, bound(found, MOLECULE_ATTACKS))
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
