"""Every option of every method changes what the method does, or is refused: none is read nowhere."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.other_options import (
    BASE,
    LARGE_MODEL,
    LEFT_OUT,
    MEANT,
    MODEL,
    OTHER_TABLE,
    OTHERS,
    PICTURE,
    PICTURES,
    REDUNDANT,
    SCALED,
    TABLE,
    Other,
    base_of,
    impossible,
    other,
    others_of,
    refused,
)
from tests.planted import network, pictures, planted, runtime
from tests.scan.tables import TABLE as PLANTED
from tests.scan.tables import clean_numbers, written
from unbackdoor.attacks import ATTACKS, Attack, LabelConsistent
from unbackdoor.data import DefenderData, ImageSet
from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models import PreActResNet18, build_network, save_model
from unbackdoor.purify import PURIFIERS, Purifier
from unbackdoor.scan import SCANNERS, Scanner
from unbackdoor.secure import TRAINERS, SecureTrainer
from unbackdoor.sift import INPUT_FILTERS, SIFTERS, InputFilter, Sifter
from unbackdoor.sift.filtered import filter_images
from unbackdoor.training import Recipe, fit

TRAINING = Recipe(epochs=2, batch_size=32, learning_rate=0.05, ema=0.0, augmentation="none", low_resolution=0.0)


def digest(*parts: Any) -> str:
    """Return a hash of tensors, of modules' states and of the text of anything else."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, nn.Module):
            found.update(digest(*part.state_dict().values()).encode())
        elif isinstance(part, Tensor):
            found.update(repr((part.dtype, part.shape)).encode() + part.detach().contiguous().numpy().tobytes())
        else:
            found.update(repr(part).encode())
    return found.hexdigest()


@lru_cache
def untrusted(count: int) -> ImageSet:
    return planted(1).fitted.train.subset(torch.arange(count))


@lru_cache
def data() -> DefenderData:
    return DefenderData(clean=pictures(64, 5), untrusted=untrusted(96))


def attacked(attack: Attack) -> str:
    train = pictures(96, 0)
    if isinstance(attack, LabelConsistent):
        # On smaller images its patches are single pixels, and alike.
        train = replace(train, images=train.images.repeat_interleave(3, 2).repeat_interleave(3, 3))
    fitted, model = attack.prepare(train, lambda: network(0), runtime()), network(0)
    if fitted.hook:
        fit(model, fitted.train, TRAINING, runtime(), hook=fitted.hook)
    seen = fitted.trigger.stamp(train.images)
    return digest(fitted.train.images, fitted.train.labels, fitted.kinds, fitted.criterion, seen, model)


def purified(purifier: Purifier) -> str:
    return digest(purifier.purify(planted(1).suspect, data(), runtime())[0])


def scanned(scanner: Scanner) -> str:
    """Return a hash of the finding, but for its threshold, which is there for its verdict alone."""
    found = scanner.scan(planted(1).suspect, DefenderData(clean=data().clean), runtime())
    triggers = [part for one in found.reconstructions for part in (one.mask, one.pattern)]
    return digest(found.backdoored, found.suspected, found.anomaly, found.numbers, *triggers)


def trained(trainer: SecureTrainer) -> str:
    found = trainer.train(lambda: network(0), data(), runtime())
    return digest(found.network, *found.parts.values())


def sifted(sifter: Sifter) -> str:
    # Of a model that it is given loss isolation takes the losses as they are; a good one FCT leaves as it is.
    model = {"LossIsolation": None, "FCT": network(0)}.get(type(sifter).__name__, planted(1).suspect)
    found = sifter.score(DefenderData(untrusted=untrusted(240)), runtime(), model)
    return digest(found.scores, found.clean, found.poisoned)


def filtered(sieve: InputFilter) -> str:
    images = untrusted(96).images
    return digest(filter_images(sieve, planted(1).suspect, images[:48], images[48:], runtime(), 0.5).scores)


KINDS: dict[str, tuple[Any, Callable[[Any], str]]] = {
    "attack": (ATTACKS, attacked),
    "purify": (PURIFIERS, purified),
    "scan": (SCANNERS, scanned),
    "secure": (TRAINERS, trained),
    "sift": (SIFTERS, sifted),
    "filter": (INPUT_FILTERS, filtered),
}
METHODS: dict[str, type[Any]] = {
    f"{kind} {name}": method for kind, (registry, _) in KINDS.items() for name, method in registry.items()
}


def idle_options(
    method: type[Any], base: dict[str, Any], others: dict[str, Other], run: Callable[[Any], str]
) -> set[str]:
    """Return the options of which another value gives the same result, or is not refused as it should be."""
    idle = set()
    usual = run(method(**base))
    assert run(method(**base)) == usual, "the same options gave another result, so differences tell nothing"
    for option, tried in others.items():
        one = method(**{**base, **tried.among})
        before = run(one) if tried.among else usual
        if tried.refused:
            with pytest.raises(InputError, match=tried.refused):
                run(replace(one, **{option: tried.value}))
        elif run(replace(one, **{option: tried.value})) == before:
            idle.add(option)
    return idle


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that options name."""
    made = tmp_path_factory.mktemp("options")
    noise = torch.randint(0, 256, (12, 12, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    (made / PICTURES).mkdir()
    for path in (PICTURE, PICTURES / "one.png"):
        Image.fromarray(noise.numpy()).save(made / path)
    described = replace(network(0).description, architecture="PreActResNet18", arguments={"width": 2})
    for path, side in ((MODEL, 12), (LARGE_MODEL, 36)):
        save_model(made / path, build_network(replace(described, image_shape=(3, side, side)), 0), provenance={})
    # The suspect is more unusual than most of its clean models, and not than all.
    apart = torch.linspace(0.1, 9, 39).view(-1, 1, 1)
    for path, seed in ((TABLE, 1), (OTHER_TABLE, 3)):
        clean = {name: apart * clean_numbers(39, seed + place) for place, name in enumerate(PLANTED.clean)}
        written(made / path, replace(PLANTED, clean=clean))
    return made


@pytest.fixture
def quick_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let methods that train a model of the data, whatever their options, take one that is there, or a quick one."""
    monkeypatch.setattr("unbackdoor.sift.fct.quick_model", lambda *_, **__: copy.deepcopy(planted(1).suspect))
    monkeypatch.setattr("unbackdoor.sift.loss_isolation.NETWORK", partial(PreActResNet18, width=2))
    # An attack's clean model need not know the classes for its options to tell.
    monkeypatch.setattr("unbackdoor.attacks.preparation.LEAST_STEPS", 1)


@pytest.mark.usefixtures("quick_models")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEFT_OUT])
def test_every_option_changes_what_the_method_does_or_is_refused(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    method, (_, run) = METHODS[name], KINDS[name.split()[0]]
    assert idle_options(method, base_of(name, method), others_of(name, method), run) == REDUNDANT.get(name, set())


@pytest.mark.usefixtures("quick_models")
@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEFT_OUT])
def test_what_cannot_be_meant_is_refused_in_a_sentence_that_tells_it(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    method, (_, run) = METHODS[name], KINDS[name.split()[0]]
    base, others = base_of(name, method), others_of(name, method)
    for option, one in others.items():
        given = {**base, **one.among}
        for value in impossible(option, getattr(method(**given), option)):
            if (option, value) in MEANT.get(name, {}).items():
                continue
            with pytest.raises((CheckpointError, InputError)) as refusal:
                run(method(**{**given, option: value}))
            told = str(refusal.value)
            assert str(value) in told or SCALED.get(option, str(value)) in told, option
            assert "\n" not in told, option


@pytest.mark.parametrize("name", sorted(LEFT_OUT))
def test_what_cannot_be_meant_is_refused_before_a_long_search(name: str) -> None:
    for one in fields(METHODS[name]):
        for value in impossible(one.name, one.default):
            with pytest.raises(InputError) as refusal:
                METHODS[name](**{one.name: value})
            assert str(value) in str(refusal.value), one.name


@dataclass(frozen=True, kw_only=True)
class Doubles:
    """Reads one option in two ways, and one not at all."""

    number: int = 1
    twice: bool = False
    unread: float = 0.5

    def result(self) -> str:
        if self.number > 5:
            raise InputError("Doubles: the number is too large")
        return str(2 * self.number if self.twice else self.number)


def test_an_option_that_nothing_reads_is_found() -> None:
    found = others_of("kind Doubles", Doubles)
    assert {option: one.value for option, one in found.items()} == {"number": 2, "twice": True, "unread": 0.25}
    assert idle_options(Doubles, {}, found, Doubles.result) == {"unread"}
    only = {"twice": other(True, number=0)}
    assert idle_options(Doubles, {}, only, Doubles.result) == {"twice"}, "twice nothing is nothing"
    assert idle_options(Doubles, {}, {"number": refused(9, "the number is too large")}, Doubles.result) == set()
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        idle_options(Doubles, {}, {"number": refused(3, "the number is too large")}, Doubles.result)
    with pytest.raises(InputError, match="too large"):
        idle_options(Doubles, {}, {"number": other(9)}, Doubles.result)


def test_what_is_said_of_options_is_said_of_those_that_there_are() -> None:
    assert METHODS.keys() >= LEFT_OUT
    for table in (BASE, OTHERS, REDUNDANT, MEANT):
        for name, options in table.items():
            assert set(options) <= {one.name for one in fields(METHODS[name])}, name
