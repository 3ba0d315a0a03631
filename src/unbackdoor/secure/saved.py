"""Parts on disk: safetensors beside the model, with a note on what they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.files import read_bytes, without_nan, write_bytes
from unbackdoor.models import Network
from unbackdoor.models.limits import MAX_FILE_BYTES
from unbackdoor.models.safetensors_file import json_object, read_safetensors, write_safetensors
from unbackdoor.secure.base import Part
from unbackdoor.secure.decoder import Decoder, decoder_for, features_shape
from unbackdoor.text import clean_text

KEY = "unbackdoor-part"
"""The entry of a file's metadata that holds our note."""


def save_part(path: Path, name: str, part: Part, provenance: dict[str, Any]) -> None:
    """Write a part as safetensors, complete or not at all.

    Args:
        path: where; a file that is there is replaced.
        name: of the part.
        part: its weights and facts are written.
        provenance: JSON values: how it came to be.

    Raises:
        OutputError: the file cannot be written.
    """
    note = {"format": 1, "part": name, "facts": part.facts(), "provenance": provenance}
    text = json.dumps(without_nan(json.loads(json.dumps(note, default=str))))
    write_bytes(path, write_safetensors(part.state_dict(), {KEY: text}))


def load_decoder(path: Path, network: Network) -> Decoder | None:
    """Read the decoder that belongs to a network, or return None if the file is not one that `save_part` wrote.

    Raises:
        CheckpointError: the file is damaged, or its decoder does not fit the network.
    """
    where = clean_text(str(path))
    try:
        state, metadata = read_safetensors(read_bytes(path, MAX_FILE_BYTES))
        if KEY not in metadata:
            return None
        note = json_object(metadata[KEY], f"metadata entry {KEY!r}")
        facts = note.get("facts")
        if note.get("format") != 1 or note.get("part") != "decoder" or not isinstance(facts, dict):
            return None
        return _decoder(state, facts.get("at"), network)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{where}: cannot be read; remove it, or name another model") from error
    except CheckpointError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _decoder(state: Mapping[str, Tensor], at: object, network: Network) -> Decoder:
    """Return the decoder with these weights for the features at the stage `at` of the network.

    Raises:
        CheckpointError: they are not those of such a decoder.
    """
    try:
        if not isinstance(at, str):
            raise InputError("no stage is named")
        # The features and the images fix its layers; the weights' shapes are not believed.
        decoder = decoder_for(at, features_shape(network, at), network.description.image_shape, seed=0)
        decoder.load_state_dict(dict(state))
    except (InputError, RuntimeError) as error:
        raise CheckpointError(
            "it is no decoder of this model; remove it, or name the model that it was trained with"
        ) from error
    return decoder.eval()
