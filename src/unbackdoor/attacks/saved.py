"""Attacks on disk: one safetensors file with the trigger, the success criterion and which rows were poisoned."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from unbackdoor.attacks.base import CLEAN, COVER, POISON, FittedAttack
from unbackdoor.attacks.bpp import Quantize
from unbackdoor.attacks.criterion import AllToAll, AllToOne, Criterion, SourceSpecific, criterion_from_json
from unbackdoor.attacks.input_aware import OwnPatch
from unbackdoor.attacks.lira import LearnedNoise
from unbackdoor.attacks.mesa_patch import Scattered
from unbackdoor.attacks.refool import Reflection
from unbackdoor.attacks.smooth import Stretched
from unbackdoor.attacks.ssba import HiddenSecret
from unbackdoor.attacks.trigger import Additive, Stamp, Trigger
from unbackdoor.attacks.wanet import Warp
from unbackdoor.data import ImageSet
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.files import read_bytes, sha256, write_bytes
from unbackdoor.limits import MAX_CLASSES
from unbackdoor.models.limits import check_finite, check_image_shape
from unbackdoor.models.safetensors_file import json_object, read_safetensors, write_safetensors
from unbackdoor.registry import Registry

FORMAT = 1
KEY = "unbackdoor-attack"
MOST_BYTES = 1 << 30

TRIGGERS: Registry[Trigger] = Registry(
    "trigger",
    Additive,
    HiddenSecret,
    LearnedNoise,
    OwnPatch,
    Quantize,
    Reflection,
    Scattered,
    Stamp,
    Stretched,
    Warp,
)
"""Kinds of triggers that an attack file may name."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedAttack:
    """An attack read from disk.

    Attributes:
        trigger: what wakes the backdoor.
        criterion: what counts as success.
        kinds: of each training row; see `FittedAttack`.
        original_labels: of each training row.
        image_shape: channels, height, width of the images it was made for.
        options: the attack's name and options.
        sha256: of the file's bytes, the very ones that were read.
    """

    trigger: Trigger
    criterion: Criterion
    kinds: UInt8[Tensor, "n"]
    original_labels: Int[Tensor, "n"]
    image_shape: tuple[int, int, int]
    options: dict[str, Any]
    sha256: str

    def poison(self, train: ImageSet) -> ImageSet:
        """Return the training data with the trigger on the rows that had it, and the labels that these were given.

        The trigger is that of testing: exact, unless the attack stamps training images in another way.

        Args:
            train: the clean images that the attack was made for.

        Raises:
            InputError: other images, or an attack that poisons batches in training and no data.
        """
        if not torch.equal(train.labels.cpu(), self.original_labels):
            raise InputError(f"{train.name} is not the data that the attack was made for: its labels are others")
        rows = self.kinds.to(train.device) != CLEAN
        if not rows.any():
            raise InputError("the attack poisons batches while it trains: there are no poisoned data to defend with")
        images, labels = train.images.clone(memory_format=torch.preserve_format), train.labels.clone()
        images[rows] = self.trigger.to(train.device).stamp(images[rows])
        poison = self.kinds.to(train.device) == POISON
        labels[poison] = self.criterion.wanted(labels[poison])
        return replace(train, images=images, labels=labels)

    def check_fits(self, image_shape: tuple[int, int, int], classes: int, where: Path) -> None:
        """Raise InputError unless the attack is on such images and classes; `where` it lies is for the message."""
        if self.image_shape != image_shape:
            raise InputError(f"the attack in {where} was made for images of another size than the model's")
        match self.criterion:
            case AllToOne(target=target) if target >= classes:
                wanted = f"wants class {target}"
            case SourceSpecific(sources=sources, target=target) if max(*sources, target) >= classes:
                wanted = f"is about class {max(*sources, target)}"
            case AllToAll(classes=several) if several != classes:
                wanted = f"is for {several} classes"
            case _:
                return
        raise InputError(
            f"the attack in {where} {wanted}, but the model has {classes} classes (from 0); name an attack on such a"
            " model"
        )


def save_attack(path: Path, fitted: FittedAttack, options: dict[str, Any]) -> None:
    """Write the attack to `path`, complete or not at all.

    Args:
        path: of the file.
        fitted: what is saved; the poisoned images are not.
        options: the attack's name and options, JSON values.
    """
    state = {f"trigger.{name}": value for name, value in fitted.trigger.state_dict().items()}
    tensors = {**state, "kinds": fitted.kinds, "original_labels": fitted.original_labels}
    description = {
        "format": FORMAT,
        "trigger": type(fitted.trigger).__name__,
        "criterion": fitted.criterion.to_json(),
        "image_shape": list(fitted.train.shape),
        "options": options,
    }
    write_bytes(path, write_safetensors(tensors, {KEY: json.dumps(description)}))


def load_attack(path: Path) -> SavedAttack:
    """Read an attack; nothing in the file is executed.

    Raises:
        InputError: no such file, or not an attack that this version wrote.
    """
    try:
        payload = read_bytes(path, MOST_BYTES)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read {path} ({reason_of(error)}); name the folder that `unbackdoor attack` made"
        ) from error
    try:
        tensors, metadata = read_safetensors(payload)
        description = json_object(metadata[KEY], "description")
        if description["format"] != FORMAT or description["format"] is True:
            raise InputError(f"{path} was written by another version of unbackdoor; make the attack again")
        state = {name.removeprefix("trigger."): tensors[name] for name in tensors if name.startswith("trigger.")}
        check_finite(state)
        shape = check_image_shape(description["image_shape"])
        trigger = TRIGGERS[description["trigger"]].from_state(state)
        kinds, labels = tensors["kinds"], tensors["original_labels"]
        typed = (kinds.dtype, labels.dtype) == (torch.uint8, torch.int64)
        if not typed or not kinds.shape == labels.shape == (len(kinds),) or not _sound(trigger, shape):
            raise InputError(f"{path} is damaged: its parts do not fit each other; make the attack again")
        if len(kinds) and not (int(kinds.max()) <= COVER and 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES):
            raise InputError(f"{path} is damaged: rows of unknown kinds or classes; make the attack again")
        return SavedAttack(
            trigger=trigger,
            criterion=criterion_from_json(description["criterion"]),
            kinds=kinds,
            original_labels=labels,
            image_shape=shape,
            options=_flat(description["options"]),
            sha256=sha256(payload),
        )
    except (CheckpointError, ValueError, KeyError, TypeError, RuntimeError, IndexError) as error:
        raise InputError(f"{path} is no attack file, or is damaged; make the attack again") from error


def _sound(trigger: Trigger, shape: tuple[int, int, int]) -> bool:
    """Return whether a trigger does to a black, a grey and a white image what a trigger may do."""
    channels, height, width = trigger.trial_shape(shape)
    probes = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, channels, height, width)
    with torch.no_grad():
        triggered: Tensor = trigger(probes)
    if triggered.shape != probes.shape or triggered.dtype != torch.float32:
        return False
    # A hair beyond is what rounding can do; NaN is in no order.
    return bool((triggered >= -1e-5).all() and (triggered <= 1 + 1e-5).all())


def _flat(options: Any) -> dict[str, Any]:
    """Return options that are as `save_attack` is given them: by name, each a value or a list of values."""
    if not isinstance(options, dict):
        raise TypeError("options have names")
    for value in options.values():
        if not all(
            one is None or isinstance(one, (str, int, float)) for one in (value if isinstance(value, list) else [value])
        ):
            raise TypeError("an option is a value or a list of values")
    return options
