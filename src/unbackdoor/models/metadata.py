"""Our note in a safetensors file: how to build the model, its origin, and whether it was backdoored."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from unbackdoor.errors import CheckpointError
from unbackdoor.models.limits import check_class_names, check_image_shape, check_scaling, unwrap_names
from unbackdoor.models.network import Description
from unbackdoor.models.safetensors_file import json_object
from unbackdoor.models.stored import Stored

# The entry of a safetensors file's metadata that holds our note, and the version of its layout.
KEY = "unbackdoor"
FORMAT = 1

_DESCRIPTION = frozenset({"architecture", "arguments", "class_names", "image_shape", "mean", "std"})


def note_of(description: Description, provenance: dict[str, Any], backdoored: dict[str, Any] | None) -> str:
    """Return the note as JSON."""
    content = {
        "format": FORMAT,
        "description": description.to_json(),
        "provenance": provenance,
        "backdoored": backdoored,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def read_stored(state: dict[str, Tensor], metadata: dict[str, str]) -> Stored:
    """Return what a safetensors file says, whether or not it has our note.

    Raises:
        CheckpointError: a note of another version, or one with a part that is missing, unknown or malformed.
    """
    if KEY not in metadata:
        return Stored(format="safetensors", state=unwrap_names(state))
    note = json_object(metadata[KEY], f"metadata entry {KEY!r}")
    if note.get("format") != FORMAT or type(note["format"]) is not int:
        raise CheckpointError("it was written by another version of unbackdoor; update unbackdoor")
    description, provenance, backdoored = (note.get(key) for key in ("description", "provenance", "backdoored"))
    right = isinstance(provenance, dict) and (backdoored is None or isinstance(backdoored, dict))
    if not right or not isinstance(description, dict) or set(description) != _DESCRIPTION:
        raise CheckpointError(f"its metadata entry {KEY!r} lacks parts or has unknown ones; save the model again")
    architecture, arguments = description["architecture"], description["arguments"]
    if not isinstance(architecture, str) or not isinstance(arguments, dict):
        raise CheckpointError("its architecture must be a name with a table of arguments; save the model again")
    shape = check_image_shape(description["image_shape"])
    mean, std = check_scaling(description["mean"], description["std"], shape[0])
    return Stored(
        format="unbackdoor safetensors",
        state=state,
        architecture=architecture,
        arguments=arguments,
        class_names=check_class_names(description["class_names"]),
        image_shape=shape,
        mean=mean,
        std=std,
        provenance=provenance or {},
        backdoored=backdoored,
    )
