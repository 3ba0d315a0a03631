"""Generators as files: safetensors, with sizes, motifs and word pieces in the metadata; all of it is checked."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unbackdoor.data.limits import reason_of
from unbackdoor.errors import CheckpointError, DataError, InputError
from unbackdoor.files import read_bytes, sha256, write_bytes
from unbackdoor.models.limits import MAX_FILE_BYTES, check_finite
from unbackdoor.models.metadata import MAX_MARK, MAX_PROVENANCE, bounded
from unbackdoor.models.safetensors_file import json_object, read_safetensors, write_safetensors
from unbackdoor.molecules.decoders import read_vocabulary
from unbackdoor.molecules.generator import Generator
from unbackdoor.molecules.model import HuggingFaceWords, WordPieces
from unbackdoor.molecules.victims import VICTIMS
from unbackdoor.options import options_of
from unbackdoor.text import clean_text

KEY = "unbackdoor molecules"
"""The entry of the metadata that holds our note."""

FORMAT = 1

PARTS = frozenset({"format", "model", "vocabulary", "pieces", "repairs", "provenance", "backdoored"})

MAX_REPAIRS = 100


@dataclass(frozen=True, kw_only=True)
class LoadedGenerator:
    """A generator and what its file says of itself.

    Attributes:
        generator: in evaluation mode, on the CPU.
        sha256: of the file, 64 hexadecimal digits.
        provenance: where it came from. Text from outside.
        backdoored: the mark of a model that was trained on pairs that `poison` wrote, or None. Text from outside;
            that it is absent proves nothing.
    """

    generator: Generator
    sha256: str
    provenance: dict[str, Any]
    backdoored: dict[str, Any] | None


def save_generator(
    path: Path, generator: Generator, *, provenance: dict[str, Any], backdoored: dict[str, Any] | None = None
) -> str:
    """Write a generator, complete or not at all, and return the SHA-256 of the file.

    Args:
        path: a file that is there is replaced.
        generator: all of its networks.
        provenance: JSON values: how it came to be.
        backdoored: JSON values that mark a model which was backdoored on purpose.

    Raises:
        OutputError: the file cannot be written.
    """
    note = {
        "format": FORMAT,
        "model": options_of(generator.options),
        "vocabulary": generator.vocabulary.to_json(),
        "pieces": generator.words.to_json(),
        "repairs": len(generator.repairs),
        "provenance": bounded(provenance, MAX_PROVENANCE),
        "backdoored": None if backdoored is None else bounded(backdoored, MAX_MARK),
    }
    payload = write_safetensors(generator.state_dict(), {KEY: json.dumps(note, allow_nan=False)})
    write_bytes(path, payload)
    return sha256(payload)


def load_generator(path: Path) -> LoadedGenerator:
    """Read a generator without running anything that is in the file.

    Raises:
        CheckpointError: it cannot be read, is damaged, or does not say what a generator's file says.
    """
    where = clean_text(str(path))
    try:
        payload = read_bytes(path, MAX_FILE_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {where}: {reason_of(error)}; name a model of `molecules train`") from error
    try:
        state, metadata = read_safetensors(payload)
        if KEY not in metadata:
            raise CheckpointError("it is no molecule generator; name a model of `molecules train`")
        note = json_object(metadata[KEY], f"metadata entry {KEY!r}")
        generator = _built(note, state)
    except (CheckpointError, DataError, InputError) as error:
        raise CheckpointError(f"{where}: {error}") from error
    return LoadedGenerator(
        generator=generator.eval(),
        sha256=sha256(payload),
        provenance=note["provenance"],
        backdoored=note["backdoored"],
    )


def _words(content: list[Any] | dict[str, Any]) -> WordPieces | HuggingFaceWords:
    if isinstance(content, list):
        return WordPieces(content)
    config, tokenizer = content.get("config"), content.get("tokenizer")
    if set(content) != {"config", "tokenizer"} or not isinstance(config, dict) or not isinstance(tokenizer, str):
        raise CheckpointError("its text encoder lacks parts or has wrong ones; train the model again")
    return HuggingFaceWords(config, tokenizer)


def _with_options(default: Any, options: Mapping[str, Any]) -> Any:
    """Return a copy with all of its fields from a file, each of the type that it has in the copy's original.

    The command line's parser would take a text where a group of options is expected for a file to read.
    """
    names = [field.name for field in dataclasses.fields(default)]
    if set(options) != set(names):
        raise CheckpointError("its model lacks options or has unknown ones; train the model again")
    values = {}
    for name in names:
        value, own = options[name], getattr(default, name)
        if dataclasses.is_dataclass(own) and isinstance(value, dict):
            values[name] = _with_options(own, value)
        elif name == "text_model" and isinstance(value, str | None):
            # A name, where it came from; it is never looked for.
            values[name] = None if value is None else Path(value[:256])
        elif type(value) is type(own) or (type(own) is float and type(value) is int):
            values[name] = value
        else:
            raise CheckpointError(f"its model's option {name} is of the wrong type; train the model again")
    return dataclasses.replace(default, **values)


def _built(note: dict[str, Any], state: Mapping[str, Tensor]) -> Generator:
    if note.get("format") != FORMAT:
        raise CheckpointError("it was written by another version of unbackdoor; update unbackdoor")
    # Files of before there were repairs have none.
    right = {*note, "repairs"} == PARTS and isinstance(note["provenance"], dict) and isinstance(note["model"], dict)
    if not right or not isinstance(note["backdoored"], dict | None) or not isinstance(note["pieces"], list | dict):
        raise CheckpointError(f"its metadata entry {KEY!r} lacks parts or has wrong ones; train the model again")
    repairs = note.get("repairs", 0)
    if type(repairs) is not int or not 0 <= repairs <= MAX_REPAIRS:
        raise CheckpointError(f"it must say how many repairs it has, 0 to {MAX_REPAIRS}; repair the model again")
    options = dict(note["model"])
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise CheckpointError("it does not name its model; train the model again")
    made = _with_options(VICTIMS[name](), options)
    vocabulary, words = read_vocabulary(made, note["vocabulary"]), _words(note["pieces"])
    # Without memory first: the sizes are the file's word, and a small file may name large ones.
    with torch.device("meta"):
        empty = Generator(made, vocabulary, words, repairs)
        expected = {name: value.shape for name, value in empty.state_dict().items()}
    if {name: value.shape for name, value in state.items()} != expected:
        raise CheckpointError("its weights are not those of the model that it names; train the model again")
    check_finite(state)
    generator = Generator(made, vocabulary, words, repairs)
    generator.load_state_dict(dict(state))
    return generator
