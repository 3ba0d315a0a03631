"""Our note in a safetensors file: how to build the model, its origin, and whether it was backdoored."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from unbackdoor.errors import CheckpointError
from unbackdoor.files import without_nan
from unbackdoor.models.edits import MAX_EDITS, read_edits
from unbackdoor.models.limits import check_class_names, check_image_shape, check_scaling, unwrap_names
from unbackdoor.models.network import Description
from unbackdoor.models.safetensors_file import json_object
from unbackdoor.models.stored import Stored

# The entry of a safetensors file's metadata that holds our note, and the version of its layout.
KEY = "unbackdoor"
FORMAT = 1

# In characters of JSON: together less than a header may hold (see safetensors_file.py), even if each is escaped again.
MAX_CLASS_NAMES = 2**20
MAX_PROVENANCE = 2**19
MAX_MARK = 2**16

_DESCRIPTION = frozenset({"architecture", "arguments", "class_names", "image_shape", "mean", "std"})
_EDITS = "edits"


def note_of(description: Description, provenance: dict[str, Any], backdoored: dict[str, Any] | None) -> str:
    """Return the note as JSON, without those parts of provenance and mark that are too long to be read again."""
    content = {
        "format": FORMAT,
        "description": description.to_json(),
        "provenance": bounded(provenance, MAX_PROVENANCE),
        "backdoored": None if backdoored is None else bounded(backdoored, MAX_MARK),
    }
    return json.dumps(content, allow_nan=False)


def check_description(description: Description) -> None:
    """Refuse to describe a model in a way in which no file that holds it would be read.

    Raises:
        CheckpointError: class names, image shape, normalisation or the number of edits out of range.
    """
    names = check_class_names(description.class_names)
    channels, _, _ = check_image_shape(description.image_shape)
    check_scaling(description.mean, description.std, channels)
    if len(json.dumps(names)) > MAX_CLASS_NAMES:
        raise CheckpointError(f"its class names are longer than {MAX_CLASS_NAMES} characters all told")
    if len(description.edits) > MAX_EDITS:
        raise CheckpointError(f"its description names {len(description.edits)} edits; at most {MAX_EDITS} are accepted")


def bounded(content: dict[str, Any], limit: int) -> dict[str, Any]:
    """Return the entries that are no longer than `limit` as JSON, all told, and the number of the others.

    A repaired model repeats what the file that it was made from said of itself. That is a stranger's text, and must
    not keep the new file from being read.
    """
    kept: dict[str, Any] = {}
    omitted = 0
    for name, value in content.items():
        try:
            entry = {name: without_nan(value)}
            length = len(json.dumps(entry))
        except RecursionError:
            length = limit + 1
        if length <= limit:
            limit -= length
            kept |= entry
        else:
            omitted += 1
    return {**kept, "entries_too_long": omitted} if omitted else kept


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
    if not right or not isinstance(description, dict) or set(description) - {_EDITS} != _DESCRIPTION:
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
        edits=read_edits(description[_EDITS]) if _EDITS in description else (),
        provenance=provenance or {},
        backdoored=backdoored,
    )
