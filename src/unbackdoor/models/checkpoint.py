"""Writing models, and reading those of strangers: one open, one read, one hash, and the same bytes are
loaded.

No code from a file is run. Architecture code (`module:function`) comes from the user's argument `arch` alone;
a file can only name one of our own networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.errors import CheckpointError, OutputError
from unbackdoor.files import read_bytes, sha256, write_bytes
from unbackdoor.models.build import find_architecture, is_code
from unbackdoor.models.fit import Asked, complete, fit
from unbackdoor.models.huggingface import read_folder
from unbackdoor.models.limits import MAX_FILE_BYTES
from unbackdoor.models.metadata import KEY, check_description, note_of, read_stored
from unbackdoor.models.network import Network
from unbackdoor.models.published import read_published
from unbackdoor.models.safetensors_file import MAX_HEADER_BYTES, read_safetensors, write_safetensors
from unbackdoor.models.sniff import sniff
from unbackdoor.models.stored import Stored
from unbackdoor.models.torch_file import read_torch
from unbackdoor.text import clean_text


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedModel:
    """A model from a file, ready to use.

    Attributes:
        network: in evaluation mode, its weights float32 on the CPU.
        sha256: of the bytes that were read, 64 hexadecimal digits; of a folder, the hash of the lines
            "<sha256>  <file name>" of the files read, sorted by name, as the program sha256sum writes them.
        format: of the file, in words.
        provenance: where the model came from, as its writer told it. Text from outside.
        backdoored: the mark of a model that was backdoored on purpose, or was repaired from one (then `repaired`
            in it is true), or None. Text from outside; that it is absent proves nothing.
        notes: sentences on what was assumed; a report must show them.
    """

    network: Network
    sha256: str
    format: str
    provenance: dict[str, Any]
    backdoored: dict[str, Any] | None
    notes: tuple[str, ...]


def save_model(
    path: Path | str,
    network: Network,
    *,
    provenance: dict[str, Any],
    backdoored: dict[str, Any] | None = None,
) -> str:
    """Write a network as safetensors, complete or not at all.

    Args:
        path: where; a file that is there is replaced.
        network: its body's state dict is written as it is.
        provenance: JSON values: how the model came to be (parent's hash, method, hash of the data). Entries that are
            very long are left out, and counted as `entries_too_long`.
        backdoored: JSON values that mark a model which we backdoored ourselves, or repaired from such a one (then
            with `repaired`: true); None for all others.

    Returns:
        The SHA-256 of the file.

    Raises:
        OutputError: the file cannot be written, or its description would be refused by `load_model`.
    """
    try:
        check_description(network.description)
    except CheckpointError as error:
        raise OutputError(f"{path} could not be read again: {error}") from error
    note = note_of(network.description, provenance, backdoored)
    payload = write_safetensors(network.body.state_dict(), {KEY: note})
    write_bytes(Path(path), payload)
    return sha256(payload)


def load_model(
    path: Path | str,
    *,
    arch: str | None = None,
    arguments: dict[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_shape: Sequence[int] | None = None,
) -> LoadedModel:
    """Read a model without running anything that is in the file.

    Read are our own safetensors, other people's safetensors, PyTorch's zip files of weights (alone, nested,
    or BackdoorBench's results), and Hugging Face folders; the content tells which, not the name. All other
    formats are refused with the reason.

    Args:
        path: a file, or a Hugging Face folder.
        arch: a registered network's name, or `module:function` (see `build_network`), whose code then runs.
        arguments: the network's own options.
        classes: the class names, in the order of the outputs.
        mean: per channel, pixel units [0, 1].
        std: per channel, pixel units.
        image_shape: channels, height, width.

    What is not given is taken from the file, else told from the weights' shapes or assumed; `notes` says so.

    Raises:
        InputError: an unknown `arch` or argument, values that do not fit each other, or a package that is
            missing.
        CheckpointError: a file that cannot be read, is refused for safety, or does not fit its architecture.
    """
    where = clean_text(str(path))
    if arch is not None:
        find_architecture(arch)
    try:
        asked = Asked.of(arch=arch, arguments=arguments, classes=classes, mean=mean, std=std, image_shape=image_shape)
        digest, stored = _read(Path(path))
        description, notes = complete(stored, asked)
        network = fit(description, stored.state, trusted=arch is not None or arguments is not None)
    except CheckpointError as error:
        raise type(error)(f"{where}: {error}") from error
    if arch is not None and is_code(arch):
        notes = (
            *notes,
            f"the network's code is the user's ({clean_text(arch, 80)}), the weights are the file's",
        )
    return LoadedModel(
        network=network,
        sha256=digest,
        format=stored.format,
        provenance=stored.provenance,
        backdoored=stored.backdoored,
        notes=notes,
    )


def _read(path: Path) -> tuple[str, Stored]:
    """Return the hash and the checked contents of a file or folder."""
    if path.is_dir():
        return _read_folder(path)
    data = _read_bytes(path)
    if sniff(data) == "safetensors":
        return sha256(data), read_stored(*read_safetensors(data))
    return sha256(data), read_published(read_torch(data))


def _read_folder(path: Path) -> tuple[str, Stored]:
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    present = [name for name in names if (path / name).is_file()]
    absent = [name for name in names[:2] if name not in present]
    if absent:
        raise CheckpointError(
            f"it is a folder without {' and '.join(absent)}; name a model file, or a"
            " Hugging Face folder with its weights in one safetensors file"
        )
    # Objects of JSON take many times the bytes of their text.
    most = {name: MAX_HEADER_BYTES if name.endswith(".json") else MAX_FILE_BYTES for name in present}
    files = {name: _read_bytes(path / name, most[name]) for name in present}
    listing = "".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files))
    return sha256(listing.encode()), read_folder(files)


def _read_bytes(path: Path, most: int = MAX_FILE_BYTES) -> bytes:
    """Return the whole of a file of no more than so many bytes, or say in a sentence why not."""
    try:
        return read_bytes(path, most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(
            f"cannot be read: {clean_text(reason)}; name a model file of weights alone, or a Hugging Face folder, that"
            " you may read"
        ) from error
