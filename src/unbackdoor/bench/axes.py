"""The axes of a grid of image classifiers, read from its file and checked as far as that goes without any work."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn

from unbackdoor.attacks import ATTACKS, Attack, Online
from unbackdoor.bench.given import NO_ATTACK, GivenModel, given_model
from unbackdoor.data import read_images
from unbackdoor.errors import UnbackdoorError
from unbackdoor.located import Located
from unbackdoor.models import NETWORKS, Description
from unbackdoor.models.build import build_body
from unbackdoor.options import file_digest, with_options
from unbackdoor.purify import PURIFIERS, Purifier
from unbackdoor.registry import Registry
from unbackdoor.scan import SCANNERS, Scanner
from unbackdoor.secure import TRAINERS, SecureTrainer
from unbackdoor.sift import SIFTERS, Sifter
from unbackdoor.training import Recipe, Runtime

T = TypeVar("T")

Precision = Literal["bf16", "fp32"]

NAMES = (
    "domain",
    "data",
    "networks",
    "attacks",
    "models",
    "poison_rates",
    "recipe",
    "scan",
    "purify",
    "sift",
    "secure",
    "clean_sizes",
    "seeds",
    "precision",
    "budget",
)
"""All that can stand in a grid."""


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        source: see `read_images`.
        name: its last path component.
        digests: SHA-256 of the training and of the test images.
        class_names: as in `ImageSet`.
        image_shape: channels, height, width.
        rows: training images.
    """

    source: str
    name: str
    digests: tuple[str, str]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    rows: int


@dataclass(frozen=True, kw_only=True)
class Axes:
    """What a grid varies.

    Attributes:
        sources: data sets.
        networks: classes of networks with their options.
        attacks: one for each attack and poison rate; None: trained on clean data.
        models: that are there already.
        recipe: how victims are trained.
        scan: scanners that judge each victim.
        purify: purifiers that repair each victim.
        sift: sifters that look for the poison in the training data of each attack.
        secure: trainers that keep each attack out.
        clean_sizes: clean samples that the defender has.
        seeds: of everything drawn.
        precision: of everything computed.
        budget: minutes that a method may take; None: its own schedule.
    """

    sources: tuple[Source, ...]
    networks: tuple[partial[nn.Module], ...]
    attacks: tuple[Attack | None, ...]
    models: tuple[GivenModel, ...]
    recipe: Recipe
    scan: tuple[Scanner, ...]
    purify: tuple[Purifier, ...]
    sift: tuple[Sifter, ...]
    secure: tuple[SecureTrainer, ...]
    clean_sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    precision: Precision
    budget: float | None


def read_axes(grid: Located) -> Axes:
    """Read the axes of a grid.

    Raises:
        InputError: something in it is wrong; the message names the line.
    """
    axes = grid.items(NAMES)
    if "data" not in axes:
        raise grid.error("the grid has no 'data', which it needs")
    if not {"attacks", "models"} & set(axes):
        raise grid.error("the grid has no 'attacks' and no 'models'; it needs at least one of them")
    sources = read_values(axes["data"], _source)
    most = min(source.rows for source in sources)
    rates = values_of(axes, "poison_rates", read_rate, ())
    data_needed = [name for name in ("sift", "secure") if name in axes]
    attacks = values_of(axes, "attacks", partial(_attacks, sources, rates, data_needed), ())
    return Axes(
        sources=sources,
        networks=values_of(axes, "networks", partial(_network, sources), (partial(NETWORKS["PreActResNet18"]),)),
        attacks=tuple(itertools.chain(*attacks)),
        models=values_of(axes, "models", partial(_model, sources, data_needed), ()),
        recipe=_recipe(axes["recipe"]) if "recipe" in axes else Recipe(),
        scan=values_of(axes, "scan", partial(_method, SCANNERS), ()),
        purify=values_of(axes, "purify", partial(_method, PURIFIERS), ()),
        sift=values_of(axes, "sift", partial(_method, SIFTERS), ()),
        secure=values_of(axes, "secure", partial(_method, TRAINERS), ()),
        clean_sizes=values_of(axes, "clean_sizes", partial(_clean_size, most), (min(2500, most),)),
        seeds=values_of(axes, "seeds", read_seed, (0,)),
        precision=read_precision(axes["precision"]) if "precision" in axes else "bf16",
        budget=read_budget(axes["budget"]) if "budget" in axes else None,
    )


def values_of(
    axes: Mapping[str, Located], name: str, read: Callable[[Located], T], default: tuple[T, ...]
) -> tuple[T, ...]:
    """Return the values of an axis, or `default` if the grid does not have it."""
    return read_values(axes[name], read) if name in axes else default


def read_values(axis: Located, read: Callable[[Located], T]) -> tuple[T, ...]:
    """Return the values of an axis, none of which may stand there twice."""
    values: list[T] = []
    names: dict[str, int] = {}
    for found in axis.elements():
        value = read(found)
        name = repr(value)
        if name in names:
            raise found.error(f"this stands in line {names[name]} already; keep one")
        names[name] = found.line
        values.append(value)
    return tuple(values)


def _source(found: Located) -> Source:
    source = found.text()
    # Cells may run in another folder than this.
    if source != "digits" and Path(source).exists():
        source = str(Path(source).resolve())
    try:
        train, test = read_images(source, "train"), read_images(source, "test")
    except UnbackdoorError as error:
        raise found.error(str(error)) from error
    name = train.name.split("/")[0]
    return Source(source, name, (train.digest(), test.digest()), train.class_names, train.shape, len(train))


def _network(sources: Sequence[Source], found: Located) -> partial[nn.Module]:
    # Code of the user's, module:function, is no name of the registry: a file can never name code.
    network: partial[nn.Module] = bound(found, NETWORKS, frozenset({"channels", "classes"}))
    for source in sources:
        # On the meta device nothing is computed and no memory is used.
        with torch.device("meta"):
            checked(found, partial(build_body, untrained(network, source)))
    return network


def untrained(network: partial[nn.Module], source: Source) -> Description:
    """Return the description of a network for a data set, all but the normalisation."""
    middle = (0.5,) * source.image_shape[0]
    return Description(
        architecture=network.func.__name__,
        arguments=dict(network.keywords),
        class_names=source.class_names,
        image_shape=source.image_shape,
        mean=middle,
        std=middle,
    )


def _method(registry: Registry[T], found: Located) -> T:
    return checked(found, bound(found, registry))


def _attacks(
    sources: Sequence[Source], rates: Sequence[float], data_needed: Sequence[str], found: Located
) -> tuple[Attack | None, ...]:
    """Return an attack: once for each of the rates, unless its own is written beside it or it has none."""
    if found.value in (None, NO_ATTACK):
        return (None,)
    attack = _method(ATTACKS, found)
    name, target = type(attack).__name__, getattr(attack, "target", 0)
    if not 0 < getattr(attack, "poison_rate", 1) <= 1:
        raise found.error(f"{name}: a poison rate lies above 0 and at most at 1")
    for source in sources:
        if not 0 <= target < len(source.class_names):
            last = len(source.class_names) - 1
            raise found.error(f"{name} has target class {target}, but {source.name} has classes 0 to {last}")
    if data_needed and isinstance(attack, Online) and not attack.fixed:
        raise found.error(f"{name} needs its own training, so it has no poisoned data; {_apart(data_needed)}")
    for option, value in found.value.items() if isinstance(found.value, dict) else ():
        if isinstance(path := getattr(attack, option, None), Path):
            checked(value, partial(file_digest, option, path))
    written = isinstance(found.value, dict) and "poison_rate" in found.value
    if written or not rates or not hasattr(attack, "poison_rate"):
        return (attack,)
    return tuple(replace(attack, poison_rate=rate) for rate in rates)  # type: ignore[call-arg]


def _model(sources: Sequence[Source], data_needed: Sequence[str], found: Located) -> GivenModel:
    model = given_model(sources, found)
    if data_needed and not model.poisons:
        raise found.error(f"the attack on {model.name} has no poisoned data; {_apart(data_needed)}")
    if "secure" in data_needed and model.untrained is None:
        raise found.error(
            f"{model.name} is a {model.network}, which cannot be trained here; put secure into another grid"
        )
    return model


def _apart(data_needed: Sequence[str]) -> str:
    return f"put {' and '.join(data_needed)} into a grid without it"


def _recipe(found: Located) -> Recipe:
    return checked(found, _with(found.items(), Recipe))


def _named(found: Located) -> tuple[str, Mapping[str, Located]]:
    """Return the name of a method and its options, written as `SAU` or as `{name: SAU, rounds: 30}`."""
    if not isinstance(found.value, dict):
        return found.text(), {}
    options = dict(found.items())
    if "name" not in options:
        raise found.error("which method? write its name beside its options, as in {name: SAU, rounds: 30}")
    return options.pop("name").text(), options


def bound(found: Located, registry: Registry[T], skip: frozenset[str] = frozenset()) -> partial[T]:
    """Return the named method with its options bound."""
    name, options = _named(found)
    return _with(options, checked(found, lambda: registry[name]), skip)


def _with(options: Mapping[str, Located], method: type[T], skip: frozenset[str] = frozenset()) -> partial[T]:
    for name, option in options.items():
        # One by one, so that an error names the option's own line.
        checked(option, partial(with_options, method, {name: option.plain()}, skip))
    return with_options(method, {name: option.plain() for name, option in options.items()}, skip)


def checked(found: Located, call: Callable[[], T]) -> T:
    """Return what `call` returns; what it refuses is named with its place in the grid file."""
    try:
        return call()
    except UnbackdoorError as error:
        raise found.error(str(error)) from error


def _clean_size(most: int, found: Located) -> int:
    size = int(found.number(2, whole=True))
    if size > most:
        raise found.error(f"there are no {size} clean samples: a data set has {most} training images")
    return size


def read_rate(found: Located) -> float:
    """Return a poison rate, above 0 and at most 1."""
    rate = found.number(0)
    if not 0 < rate <= 1:
        raise found.error(f"a poison rate lies above 0 and at most at 1, found {rate}")
    return float(rate)


def read_seed(found: Located) -> int:
    """Return a seed that a runtime takes."""
    seed = int(found.number(0, whole=True))
    checked(found, lambda: Runtime(seed=seed))
    return seed


def read_precision(found: Located) -> Precision:
    """Return bf16 or fp32."""
    match found.text():
        case "bf16":
            return "bf16"
        case "fp32":
            return "fp32"
    raise found.error(f"the precision is bf16 or fp32, found {found.text()!r}")


def read_budget(found: Located) -> float:
    """Return minutes, above 0."""
    minutes = found.number(0)
    if not minutes > 0:
        raise found.error("a budget is a positive number of minutes")
    return float(minutes)
