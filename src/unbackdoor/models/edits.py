"""Edits: changes of a network that its description names, so that a saved model has them too.

There is one so far: a plug (see `plugs.py`) put before a module. The module is replaced, under its own name, by a pair
of the plug and the module. When a file is read, its edits are made again in their order, each one from a kind and a
module's name: a file brings no code.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models.limits import MAX_NAME
from unbackdoor.models.names import module_named
from unbackdoor.models.plugs import KINDS, SIZED, Plug
from unbackdoor.text import clean_text

if TYPE_CHECKING:
    from unbackdoor.models.network import Network

MAX_EDITS = 16
MAX_PLACES = 2**20


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Put a plug before a module.

    Attributes:
        kind: of the plug: "convbn", "onlyconv", "twoconv", "linear", "linear_light" or "mlp".
        before: a module's name, relative to the network's body, such as "layer4.1.conv1". Before a sequence means
            before its first member.
        residual: whether what comes in is added to what the plug makes of it.
        size: height and width of the features there, for the kinds "linear" and "mlp" only.

    Raises:
        InputError: a field that is none of these.
    """

    kind: str
    before: str
    residual: bool = False
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            # Not the text of what is none: a file can nest it without end.
            shown = clean_text(self.kind, 40) if isinstance(self.kind, str) else type(self.kind).__name__
            raise InputError(f"there is no plug {shown!r} (known: {', '.join(KINDS)})")
        if not isinstance(self.before, str) or not 1 <= len(self.before) <= MAX_NAME:
            raise InputError(f"a plug stands before a module, whose name has 1 to {MAX_NAME} characters")
        if type(self.residual) is not bool:
            raise InputError("whether a plug is residual must be true or false")
        if (self.size is not None) != (self.kind in SIZED):
            raise InputError(f"the plugs {' and '.join(sorted(SIZED))} need the size of the features, others have none")
        if self.size is not None and not _is_size(self.size):
            raise InputError(f"the size of a plug must be two numbers of 1 or more, {MAX_PLACES} places at most")


_FIELDS = frozenset(field.name for field in fields(Edit))


class Plugged(nn.Module):
    """A module with a plug before it."""

    def __init__(self, inner: nn.Module, plug: Plug) -> None:
        super().__init__()
        self.inner = inner
        self.plug = plug

    def forward(self, features: Tensor, *rest: Any, **named: Any) -> Any:
        """Return what the module makes of the features after the plug."""
        return self.inner(self.plug(features), *rest, **named)


def read_edits(content: object) -> tuple[Edit, ...]:
    """Return the edits that a file names.

    Raises:
        CheckpointError: no list, too many, or one with a part that is missing, unknown or out of range.
    """
    if not isinstance(content, list) or not 1 <= len(content) <= MAX_EDITS:
        raise CheckpointError(f"its edits must be a list of 1 to {MAX_EDITS}; save the model again")
    edits = []
    for entry in content:
        if not isinstance(entry, dict) or set(entry) != _FIELDS:
            raise CheckpointError("one of its edits lacks parts or has unknown ones; save the model again")
        size = entry["size"]
        try:
            edits.append(Edit(**{**entry, "size": tuple(size) if isinstance(size, list) else size}))
        except InputError as error:
            raise CheckpointError(f"one of its edits cannot be made: {error}") from error
    return tuple(edits)


def insert_plug(network: Network, edit: Edit) -> Plug:
    """Make an edit in a network and note it in the network's description.

    Args:
        network: changed in place; its own weights stay as they are. Where there is a plug already, the new one comes
            before it.
        edit: what to put where.

    Returns:
        The plug, in the mode, on the device and of the type of the network.

    Raises:
        InputError: there is no such module, it has another name too, or nothing in it tells how many channels
            come in; or the network has too many edits.
    """
    described = (*network.description.edits, edit)
    if len(described) > MAX_EDITS:
        raise InputError(f"a network can have {MAX_EDITS} edits at most")
    like = next(network.body.parameters())
    plug = make_edit(network.body, edit)
    network.description = replace(network.description, edits=described)
    return plug.to(like.device, like.dtype).train(network.training)


def make_edit(body: nn.Module, edit: Edit) -> Plug:
    """Put the plug of an edit into a body, in place, and return it (see `insert_plug`)."""
    name = insertion_point(body, edit.before)
    module = body.get_submodule(name)
    channels, last = _channels(module, edit.before)
    plug = Plug(edit.kind, channels, channels_last=last, residual=edit.residual, size=edit.size)
    parent, _, own = name.rpartition(".")
    setattr(body.get_submodule(parent), own, Plugged(module, plug))
    return plug


def insertion_point(body: nn.Module, before: str) -> str:
    """Return the name of the module that a plug before that module replaces: of a sequence, its first member.

    Our networks call the members of a sequence one by one, never the sequence.

    Raises:
        InputError: there is no such module, or it has another name too.
    """
    module, name = module_named(body, before), before
    while type(module).forward is nn.Sequential.forward and len(list(module.children())) > 0:
        first, module = next(module.named_children())
        name = f"{name}.{first}"
    if sum(other is module for _, other in body.named_modules(remove_duplicate=False)) > 1:
        raise InputError(f"{before!r} is used under another name too; a plug can only stand before one of its own")
    return name


def size_at(body: nn.Module, before: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the `size` of an edit before that module.

    Args:
        body: not edited there yet.
        before: the module's name.
        shape: of the features that come in.

    Raises:
        InputError: nothing in the module tells how many channels come in, or the features have another shape.
    """
    channels, last = _channels(body.get_submodule(insertion_point(body, before)), before)
    if len(shape) < 2 or (not last and len(shape) != 4) or shape[-1 if last else 1] != channels:
        raise InputError(
            f"what comes into {before!r} has the shape {shape}, without the {channels} channels of the first layer in"
            " it; name another module"
        )
    if not last:
        return shape[2], shape[3]
    places = 1
    for side in shape[1:-1]:
        places *= side
    return places, 1


def _channels(module: nn.Module, name: str) -> tuple[int, bool]:
    """Return how many channels come into a module, and whether they are the last dimension, by its first layer."""
    for inner in module.modules():
        if isinstance(inner, nn.Conv2d):
            return inner.in_channels, False
        if isinstance(inner, nn.BatchNorm2d):
            return inner.num_features, False
        if isinstance(inner, nn.Linear):
            return inner.in_features, True
    raise InputError(
        f"{name!r} has no convolution, batch normalisation or linear layer that tells how many channels come in;"
        " name another module"
    )


def _is_size(size: object) -> bool:
    right = isinstance(size, tuple) and len(size) == 2 and all(type(side) is int and side >= 1 for side in size)
    return right and size[0] * size[1] <= MAX_PLACES  # type: ignore[index]
