"""The training data that an attack poisoned: kept in as few bytes as tell them, and made again where they are needed.

An attack's file says which rows are poisoned and has the trigger. For attacks that stamp training images as they stamp
test images that is all. Of the others (adversarial images below a patch, weaker triggers) the rows themselves are kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from unbackdoor.attacks import FittedAttack, SavedAttack, load_attack
from unbackdoor.attacks.base import CLEAN
from unbackdoor.attacks.saved import MOST_BYTES
from unbackdoor.data import ImageSet
from unbackdoor.data.limits import reason_of
from unbackdoor.errors import CheckpointError, DataError, InputError
from unbackdoor.files import read_bytes, write_bytes
from unbackdoor.folder import ATTACK, ROWS
from unbackdoor.models.safetensors_file import read_safetensors, write_safetensors


def kept_rows(fitted: FittedAttack, train: ImageSet, folder: Path) -> dict[str, Path]:
    """Write the poisoned rows, if the attack's file beside them does not tell them; return the file by its name.

    Args:
        fitted: the attack, whose file is written already.
        train: the clean images.
        folder: with the file.
    """
    rows = fitted.kinds != CLEAN
    if not bool(rows.any()):
        return {}
    again = load_attack(folder / ATTACK).poison(train)
    if torch.equal(again.images, fitted.train.images) and torch.equal(again.labels, fitted.train.labels):
        return {}
    state = {"images": fitted.train.images[rows], "labels": fitted.train.labels[rows]}
    write_bytes(folder / ROWS, write_safetensors(state, {}))
    return {ROWS: folder / ROWS}


def untrusted_data(train: ImageSet, given: Path) -> tuple[ImageSet, SavedAttack | None]:
    """Return what a defender finds, the training data as the attack left them, and the attack.

    Args:
        train: the clean images.
        given: folder with the attack's file, and with the poisoned rows if they were kept; without an attack the data
            are clean.

    Raises:
        InputError: the files are damaged, belong to other data, or the attack poisons no data.
    """
    if not (given / ATTACK).exists():
        return train, None
    attack = load_attack(given / ATTACK)
    again = attack.poison(train)
    if not (given / ROWS).exists():
        return again, attack
    rows = attack.kinds != CLEAN
    try:
        state, _ = read_safetensors(read_bytes(given / ROWS, MOST_BYTES))
        images, labels = state["images"], state["labels"]
        told = [(images.dtype, images.shape[1:]), (labels.dtype, labels.shape[1:])]
        if told != [(torch.uint8, train.shape), (torch.int64, ())] or not len(images) == len(labels) == int(rows.sum()):
            raise CheckpointError("its rows are not those of the attack")
        again.images[rows], again.labels[rows] = images, labels
        # Checks the labels.
        return replace(again), attack
    except (OSError, ValueError, KeyError, CheckpointError, DataError) as error:
        raise InputError(f"{given / ROWS} is damaged ({reason_of(error)}); delete the cell that made it") from error
