"""How generators of molecules are made and measured, and what from: the settings of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from unbackdoor.bench.axes import Precision
from unbackdoor.bench.cell import Label
from unbackdoor.bench.given import NO_ATTACK
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph
from unbackdoor.molecules.data import Alone, Pairs, Table, filter_pairs, molecules_alone, training_rows
from unbackdoor.molecules.purify import MoleculePurifier
from unbackdoor.molecules.scan import MoleculeScanner
from unbackdoor.molecules.train import SHARES, digest_of
from unbackdoor.molecules.victims import ThreeMDiffusion
from unbackdoor.options import file_digest, options_of, revision_of, short_name
from unbackdoor.training import Runtime

NOWHERE = "none"
"""In place of stages: a clean control."""


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
            "method": None,
            "scanner": None,
            "seed": self.seed,
        }

    def pair_labels(self) -> dict[str, Label]:
        """Return what people tell its pairs apart by, whichever generator learns from them."""
        return {**self.labels(), **dict.fromkeys(("model", "poison_in", "precision", "budget"))}

    def pair_recipe(self) -> dict[str, Any]:
        """Return all that decides its pairs."""
        everything = self.recipe()
        return {name: everything[name] for name in ("data", "attack", "seed")}

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


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done with a generator, or with its pairs.

    Attributes:
        setting: how it was made.
        scanner: that looks for trigger and target.
        purifier: that takes out what the scanner finds; None: it is a scan alone.
    """

    setting: Setting
    scanner: MoleculeScanner
    purifier: MoleculePurifier | None = None

    def runtime(self, given: Runtime) -> Runtime:
        """Return a runtime with the setting's seed and precision; its budget is that of training a generator."""
        trains = self.purifier is not None and self.purifier.trains
        return replace(self.setting.runtime(given), budget=self.setting.budget if trains else None)


def told(stages: Sequence[str]) -> str:
    """Return stages as a grid names them."""
    return ",".join(stages) or NOWHERE


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
