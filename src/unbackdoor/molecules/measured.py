"""What a generator is worth on test prompts, beside chance and look-up, and what an attack does to it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from unbackdoor.molecules.attacks import BadGraph, read_target
from unbackdoor.molecules.baselines import by_chance, by_nearest_text
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.generator import Drawn, Generator
from unbackdoor.molecules.metrics import Presence, Quality, measure_presence, measure_quality
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """What an attack does to a generator.

    Attributes:
        triggered: how often the target is written for prompts with the trigger.
        clean: the same for the prompts without it.
        quality: of the molecules for prompts with the trigger.
        drawn: these molecules.
        prompts: with the trigger.
    """

    triggered: Presence
    clean: Presence
    quality: Quality
    drawn: Drawn
    prompts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON values."""
        return {
            "asr": self.triggered.to_json(),
            "target_without_trigger": self.clean.to_json(),
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
) -> Measured:
    """Measure a generator.

    Args:
        generator: trained.
        train: pairs in which the nearest text is looked up.
        tested: prompts, each with its own molecule.
        attack: whose trigger the prompts get too; None: no attack is measured.
        samples: molecules for each prompt.
        runtime: its seed draws the molecules.
        guidance: weight of the text; by default the model's own.
    """
    drawn = generator.draw(tested.texts, samples, runtime, guidance)
    quality = {
        "model": measure_quality(drawn.smiles, tested.smiles),
        "nearest text": measure_quality(by_nearest_text(train, tested.texts), tested.smiles),
        "chance": measure_quality(by_chance(tested.smiles, samples, runtime.seed), tested.smiles),
    }
    attacked = None
    if attack is not None:
        draws = random.Random(runtime.seed)
        prompts = tuple(attack.put(text, draws) for text in tested.texts)
        triggered = generator.draw(prompts, samples, runtime, guidance)
        target = read_target(attack.target)
        attacked = Attacked(
            triggered=measure_presence(triggered.smiles, target),
            clean=measure_presence(drawn.smiles, target),
            quality=measure_quality(triggered.smiles, tested.smiles),
            drawn=triggered,
            prompts=prompts,
        )
    return Measured(quality=quality, drawn=drawn, attacked=attacked)
