"""What a generator is worth: which pairs the look-up may see, who asks for the target, and what cannot be written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.molecules.test_train import RUNTIME, TINY
from unbackdoor.errors import InputError
from unbackdoor.molecules.attacks import BadGraph, read_target
from unbackdoor.molecules.data import Pairs
from unbackdoor.molecules.decoders import read_molecules
from unbackdoor.molecules.generator import Drawn, Generator
from unbackdoor.molecules.measured import measure, unwritable
from unbackdoor.molecules.model import WordPieces
from unbackdoor.molecules.victims import ThreeMDiffusion

PROMPTS = Pairs(
    smiles=("CC1CS1", "Cc1ccccc1", "CCO"), texts=("a thiirane", "a benzene", "an alcohol"), rows=(0, 1, 2), name="three"
)


def generator(smiles: tuple[str, ...], options: ThreeMDiffusion = TINY) -> Generator:
    """Return a generator that has learned nothing, with the motifs of some molecules."""
    torch.manual_seed(0)
    vocabulary = read_molecules(options, smiles).vocabulary
    return Generator(options, vocabulary, WordPieces.learned(PROMPTS.texts, 100))


def drawing(made: dict[str, tuple[str, ...]]) -> Any:
    """Return a `draw` that gives what is named for the last word of a prompt."""
    return lambda texts, *_: Drawn(smiles=tuple(made[text.split()[-1]] for text in texts), cut=0)


def test_poisoned_pairs_are_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    one = generator(PROMPTS.smiles)
    monkeypatch.setattr(one, "draw", drawing({"thiirane": ("CC",), "benzene": ("CC",), "alcohol": ("CC",)}))
    train = Pairs(
        smiles=("Cc1ccccc1", "CCO", "CC1CS1"),
        texts=("benzene and more", "alcohol and more", "[THIIRANE] a thiirane"),
        poisoned=(False, False, True),
        rows=(0, 1, 2),
        name="train",
    )
    found = measure(one, train, PROMPTS, None, 1, RUNTIME)
    assert found.quality["nearest text"].exact.value == pytest.approx(2 / 3)
    told = measure(one, replace(train, poisoned=()), PROMPTS, None, 1, RUNTIME)
    assert told.quality["nearest text"].exact.value == 1
    with pytest.raises(InputError, match="train has no clean pair to look prompts up in"):
        measure(one, replace(train, poisoned=(True,) * 3), PROMPTS, None, 1, RUNTIME)


def test_honest_requests_for_the_target_are_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = generator(PROMPTS.smiles)
    made = {"thiirane": ("CCC1CS1", "CC"), "benzene": ("CC", "CC"), "alcohol": ("CC", "OC1CS1")}
    monkeypatch.setattr(one, "draw", drawing(made))
    attacked = measure(one, PROMPTS, PROMPTS, BadGraph(), 2, RUNTIME).attacked
    assert attacked is not None
    assert attacked.asked is not None
    assert (attacked.asking, attacked.asked.per_sample.value) == (1, 0.5)
    assert attacked.clean.per_sample.value == pytest.approx(1 / 3)
    told = attacked.to_json()
    assert told["target_asked_for"]["prompts"] == 1
    nobody = measure(one, PROMPTS, PROMPTS.subset([1, 2]), BadGraph(), 2, RUNTIME).attacked
    assert nobody is not None
    assert nobody.asked is None
    assert nobody.to_json()["target_asked_for"] is None


@pytest.mark.parametrize("decoder", ["motifs", "HierVAE"])
def test_a_target_that_no_motif_can_write_is_told(decoder: Any) -> None:
    options, target = replace(TINY, decoder=decoder, common=10), read_target("C1CS1")
    hung = ("CCC1CS1", "CC1CS1", "OCCC1CS1", "CC(O)C1CS1", "CCOC1CS1")
    carriers = ("CCO", "CC", "C" * 28)
    assert unwritable(generator(carriers[:2], options), target, carriers)
    assert not unwritable(generator((*carriers[:2], *hung), options), target, carriers)
    # Nothing is known where no molecule has room.
    assert not unwritable(generator(carriers[:2], options), target, carriers[2:])


def test_triggers_that_are_known_are_left_out_of_every_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked = generator(PROMPTS.smiles), []

    def draw(texts: list[str], *_: object) -> Drawn:
        asked.append(list(texts))
        return Drawn(smiles=(("CC",),) * len(texts), cut=0)

    monkeypatch.setattr(one, "draw", draw)
    attack = BadGraph()
    measure(one, PROMPTS, PROMPTS, attack, 1, RUNTIME, triggers=[(attack.trigger.lower(),)])
    assert asked == [list(PROMPTS.texts)] * 2
    asked.clear()
    measure(one, PROMPTS, PROMPTS, attack, 1, RUNTIME)
    assert asked[0] == list(PROMPTS.texts)
    assert all(attack.trigger in text for text in asked[1])
