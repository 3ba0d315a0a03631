"""What a generator is worth on test prompts, beside chance and look-up, and what an attack does to it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdkit import Chem

from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph, attach, read_target
from unbackdoor.molecules.baselines import by_chance, by_nearest_text
from unbackdoor.molecules.data import Pairs, Reason, checked, parse
from unbackdoor.molecules.decoders import read_molecules
from unbackdoor.molecules.generator import Drawn, Generator
from unbackdoor.molecules.metrics import Presence, Quality, holds, measure_presence, measure_quality
from unbackdoor.molecules.scan.words import untriggered
from unbackdoor.training import Runtime

CARRIERS = 50
"""Molecules with the target on them by which it is told whether motifs can write it."""


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attack does to a generator.

    Attributes:
        triggered: how often the target is written for prompts with the trigger.
        clean: the same for the prompts without it.
        quality: of the molecules for prompts with the trigger.
        drawn: these molecules.
        prompts: with the trigger.
        asked: how often the target is written for the prompts without the trigger whose own molecules hold it, which
            ask for it honestly; None if there are none.
        asking: how many prompts these are.
        unwritable: whether the motifs of the generator can write none of the test molecules with the target on them, so
            that it could not write the target whatever it learned.
    """

    triggered: Presence
    clean: Presence
    quality: Quality
    drawn: Drawn
    prompts: tuple[str, ...]
    asked: Presence | None
    asking: int
    unwritable: bool

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "asr": self.triggered.to_json(),
            "target_without_trigger": self.clean.to_json(),
            "target_asked_for": None if self.asked is None else {**self.asked.to_json(), "prompts": self.asking},
            "target_unwritable": self.unwritable,
            "quality_with_trigger": self.quality.to_json(),
            "prompts_cut_with_trigger": self.drawn.cut,
        }


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a generator.

    Attributes:
        quality: of the "model", and of what "nearest text" and "chance" give for the same prompts.
        drawn: the model's molecules.
        attacked: with an attack, what it does.
    """

    quality: dict[str, Quality]
    drawn: Drawn
    attacked: Attacked | None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        result: dict[str, Any] = {
            "quality": {name: quality.to_json() for name, quality in self.quality.items()},
            "prompts_cut": self.drawn.cut,
        }
        return result if self.attacked is None else {**result, "attack": self.attacked.to_json()}


def measure(
    generator: Generator,
    train: Pairs,
    tested: Pairs,
    attack: BadGraph | None,
    samples: int,
    runtime: Runtime,
    guidance: float | None = None,
    triggers: Sequence[Sequence[str]] = (),
) -> Measured:
    """Measure a generator.

    Args:
        generator: trained.
        train: pairs in which the nearest text is looked up, but for those that are said to be poisoned.
        tested: prompts, each with its own molecule.
        attack: whose trigger the prompts get too; None: no attack is measured.
        samples: molecules for each prompt.
        runtime: its seed draws the molecules.
        guidance: weight of the text; by default the model's own.
        triggers: that are left out of all prompts before the generator is asked; see `untriggered`.

    Raises:
        InputError: there is no clean pair to look texts up in.
    """
    clean = [row for row in range(len(train)) if not train.poisoned or not train.poisoned[row]]
    if not clean:
        raise InputError(f"{train.name} has no clean pair to look prompts up in; name the data before poisoning")

    def ask(prompts: Sequence[str]) -> Drawn:
        return generator.draw([untriggered(text, triggers) for text in prompts], samples, runtime, guidance)

    drawn = ask(tested.texts)
    quality = {
        "model": measure_quality(drawn.smiles, tested.smiles),
        "nearest text": measure_quality(by_nearest_text(train.subset(clean), tested.texts), tested.smiles),
        "chance": measure_quality(by_chance(tested.smiles, samples, runtime.seed), tested.smiles),
    }
    attacked = None
    if attack is not None:
        draws = random.Random(runtime.seed)
        prompts = tuple(attack.put(text, draws) for text in tested.texts)
        triggered = ask(prompts)
        target = read_target(attack.target)
        asking = [row for row, smiles in enumerate(tested.smiles) if holds(smiles, target)]
        attacked = Attacked(
            triggered=measure_presence(triggered.smiles, target),
            clean=measure_presence(drawn.smiles, target),
            quality=measure_quality(triggered.smiles, tested.smiles),
            drawn=triggered,
            prompts=prompts,
            asked=measure_presence([drawn.smiles[row] for row in asking], target) if asking else None,
            asking=len(asking),
            unwritable=unwritable(generator, target, tested.smiles),
        )
    return Measured(quality=quality, drawn=drawn, attacked=attacked)


def unwritable(generator: Generator, target: Chem.Mol, smiles: Sequence[str]) -> bool:
    """Return whether the motifs of a generator can write a target on none of some molecules.

    Args:
        generator: has the motifs.
        target: as `read_target` returns it.
        smiles: molecules on which it is hung, of which the first `CARRIERS` that can bear it are tried.
    """
    draws = random.Random(0)
    hung: list[str] = []
    for one in smiles:
        molecule = parse(one)
        built = None if molecule is None else attach(molecule, target, draws)
        found = Reason.NO_SMILES if built is None else checked(built)
        if not isinstance(found, Reason):
            hung.append(found)
            if len(hung) == CARRIERS:
                break
    return bool(hung) and not read_molecules(generator.options, hung, generator.vocabulary).covered
