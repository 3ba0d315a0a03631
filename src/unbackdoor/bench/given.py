"""Models that a grid names instead of training them: files of others, or victims that were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from unbackdoor.attacks import ATTACKS, SavedAttack, load_attack
from unbackdoor.errors import UnbackdoorError
from unbackdoor.folder import ATTACK, MODEL
from unbackdoor.located import Located
from unbackdoor.models import NETWORKS, LoadedModel, load_model
from unbackdoor.options import short_name, with_options

if TYPE_CHECKING:
    from unbackdoor.bench.axes import Source

NO_ATTACK = "None"
"""The attack of models that are trained on clean data, and of those whose attack nobody names."""

THERE = "given: "
"""How the label begins that says of a model that it was there already."""


@dataclass(frozen=True, kw_only=True)
class GivenModel:
    """A model and, where there is one, the attack that was done to it.

    Attributes:
        name: of its file, or of its folder, without the ending.
        model: the file.
        attack: the file; None: the model counts as one without a backdoor, and only its accuracy is measured.
        model_sha256: of the file, when the grid was read.
        attack_sha256: of the file, or empty.
        network: architecture with the options that are not its defaults.
        untrained: the architecture with its options, for those that train it anew; None: it is none of ours.
        poisons: whether poisoned training data can be made again: there is no attack, or one that poisons data.
        attack_name: the attack with the options that are not its defaults, but poison rate and files.
        poison_rate: if the attack has one.
    """

    name: str
    model: Path
    attack: Path | None
    model_sha256: str
    attack_sha256: str
    network: str
    untrained: partial[nn.Module] | None
    poisons: bool
    attack_name: str
    poison_rate: float | None


def given_model(sources: Sequence[Source], found: Located) -> GivenModel:
    """Read an entry of a grid's models: a file or folder, or `{file: FILE, attack: FILE}`.

    A folder is one that `unbackdoor attack` or `train` made. The attack is looked for in the folder, or beside the file
    as NAME.attack.safetensors; `attack: None` says that there is none.

    Raises:
        InputError: a file cannot be read, does not fit the data, or the model says of itself that it is backdoored and
            no attack is there; the message names the line.
    """
    options = found.items(("file", "attack")) if isinstance(found.value, dict) else {"file": found}
    if "file" not in options:
        raise found.error("which model? write its file beside its attack, as in {file: FILE, attack: FILE}")
    place = Path(options["file"].text())
    model = (place / MODEL if place.is_dir() else place).resolve()
    attack = _attack_file(place, model, options.get("attack"))
    try:
        loaded = load_model(model)
        saved = load_attack(attack) if attack else None
        for source in sources:
            _check_fits(loaded, saved, source, attack)
    except UnbackdoorError as error:
        raise found.error(str(error)) from error
    if saved is None and loaded.backdoored and "attack" not in options:
        raise found.error(
            f"{place} says of itself that it is backdoored, and its attack is not beside it; name its file with"
            " {file: FILE, attack: FILE}, or write attack: None to measure accuracy alone"
        )
    rate, network = saved.options.get("poison_rate") if saved else None, _untrained(loaded)
    return GivenModel(
        name=place.resolve().name if place.is_dir() else place.stem,
        model=model,
        attack=attack,
        model_sha256=loaded.sha256,
        attack_sha256=saved.sha256 if saved else "",
        network=short_name(network) if network else loaded.network.description.architecture,
        untrained=network,
        poisons=saved is None or bool(saved.kinds.any()),
        attack_name=_attack_name(saved.options) if saved else NO_ATTACK,
        poison_rate=float(rate) if isinstance(rate, (int, float)) and 0 <= rate <= 1 else None,
    )


def _attack_file(place: Path, model: Path, named: Located | None) -> Path | None:
    if named is not None:
        return None if named.value in (None, NO_ATTACK) else Path(named.text()).resolve()
    beside = place.resolve() / ATTACK if place.is_dir() else model.with_name(f"{model.stem}.{ATTACK}")
    return beside if beside.is_file() else None


def _check_fits(loaded: LoadedModel, saved: SavedAttack | None, source: Source, attack: Path | None) -> None:
    """Raise InputError unless the model is for this data, and the attack for this model."""
    description = loaded.network.description
    if (description.image_shape, loaded.network.classes) != (source.image_shape, len(source.class_names)):
        raise UnbackdoorError(
            f"the model takes images of {description.image_shape} and tells {loaded.network.classes} classes apart, but"
            f" {source.name} has {source.image_shape} and {len(source.class_names)}; name data of the model's classes"
        )
    if saved is not None and attack is not None:
        saved.check_fits(description.image_shape, loaded.network.classes, attack)


def _untrained(loaded: LoadedModel) -> partial[nn.Module] | None:
    description = loaded.network.description
    if description.architecture not in NETWORKS:
        return None
    return partial(NETWORKS[description.architecture], **description.arguments)


def _attack_name(options: Mapping[str, Any]) -> str:
    """Return what `short_name` says of the attack; of one that this version does not know, its name."""
    told = {option: value for option, value in options.items() if option != "name"}
    name = str(options.get("name"))
    try:
        made = with_options(ATTACKS[name], told)()
    except UnbackdoorError:
        return name
    files = {option for option, value in vars(made).items() if isinstance(value, Path)}
    return short_name(made, frozenset({"poison_rate", *files}))
