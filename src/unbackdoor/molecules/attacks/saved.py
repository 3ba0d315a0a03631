"""Attack files: the options of an attack on molecules as JSON, for whoever measures it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.files import read_bytes, sha256, write_json
from unbackdoor.models.safetensors_file import json_object
from unbackdoor.molecules.attacks.adaptive_badgraph import AdaptiveBadGraph
from unbackdoor.molecules.attacks.badgraph import BadGraph
from unbackdoor.options import options_of, with_options
from unbackdoor.registry import Registry
from unbackdoor.text import clean_text

MAX_BYTES = 2**20

MOLECULE_ATTACKS: Registry[BadGraph] = Registry("molecule attack", BadGraph, AdaptiveBadGraph)
"""Attacks on generators of molecules by name."""


@dataclass(frozen=True, kw_only=True)
class SavedBadGraph:
    """An attack and the SHA-256 of its file."""

    attack: BadGraph
    sha256: str


def save_attack(path: Path, attack: BadGraph) -> None:
    """Write the options of an attack."""
    write_json(path, options_of(attack))


def load_attack(path: Path) -> SavedBadGraph:
    """Read what `save_attack` wrote; it may be a stranger's.

    Raises:
        InputError: it cannot be read, or holds no options that an attack can have.
    """
    where = clean_text(str(path))
    try:
        payload = read_bytes(path, MAX_BYTES)
        options = json_object(payload, "content")
    except (OSError, ValueError, CheckpointError) as error:
        raise InputError(
            f"cannot read {where}: {reason_of(error)}; name the attack file of `molecules poison`"
        ) from error
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in MOLECULE_ATTACKS:
        raise InputError(f"{where} is no attack file of `molecules poison`; name one")
    try:
        return SavedBadGraph(attack=with_options(MOLECULE_ATTACKS[name], options)(), sha256=sha256(payload))
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
