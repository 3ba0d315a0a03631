"""Keeping a poisoned data set whose trigger took long to find, so that an interrupted run does not look for it again.

A search repeated on another number of threads, or on a GPU, ends a little elsewhere; then the victim's interrupted
training could not go on.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import torch

from unbackdoor.attacks.base import CLEAN, Attack, FittedAttack
from unbackdoor.data import ImageSet
from unbackdoor.errors import UnbackdoorError
from unbackdoor.files import read_bytes, sha256, write_bytes
from unbackdoor.models import Network
from unbackdoor.models.safetensors_file import read_safetensors, write_safetensors
from unbackdoor.options import files_of
from unbackdoor.training import Runtime

MOST_BYTES = 1 << 34


def keep(work: Path, key: str, fitted: FittedAttack) -> None:
    """Write the attack and its poisoned images to `work`; `key` tells them from others (see `key_of`)."""
    from unbackdoor.attacks.saved import save_attack

    rows = (fitted.kinds != CLEAN).nonzero().squeeze(1)
    save_attack(work / "kept-attack.safetensors", fitted, {"key": key})
    tensors = {"images": fitted.train.images[rows].contiguous(), "labels": fitted.train.labels}
    write_bytes(work / "kept-images.safetensors", write_safetensors(tensors, {}))


def kept(work: Path, key: str, train: ImageSet) -> FittedAttack | None:
    """Return what was kept under this key for these data, or None."""
    from unbackdoor.attacks.saved import load_attack

    with contextlib.suppress(UnbackdoorError, OSError, ValueError, KeyError, RuntimeError, IndexError):
        saved = load_attack(work / "kept-attack.safetensors")
        if saved.options != {"key": key}:
            return None
        tensors, _ = read_safetensors(read_bytes(work / "kept-images.safetensors", MOST_BYTES))
        images = train.images.clone(memory_format=torch.preserve_format)
        images[(saved.kinds != CLEAN).to(train.device)] = tensors["images"].to(train.device)
        return FittedAttack(
            train=replace(train, images=images, labels=tensors["labels"].to(train.device)),
            kinds=saved.kinds.to(train.device),
            original_labels=train.labels,
            trigger=saved.trigger.to(train.device),
            criterion=saved.criterion,
        )
    return None


def key_of(attack: Attack, train: ImageSet, network: Network, runtime: Runtime) -> str:
    """Return a digest of everything that decides what the attack does to the data, but the machine.

    Args:
        attack: with its options; of files and folders that they name, the content counts.
        train: clean data.
        network: untrained, as `build_model` returns it.
        runtime: of the run.

    Raises:
        InputError: a file cannot be read.
    """
    words = repr((attack, files_of(attack), train.digest(), network.description, runtime.seed, runtime.precision))
    return sha256(words.encode())
