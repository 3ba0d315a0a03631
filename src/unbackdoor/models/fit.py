"""From what a file says and what the user says to a network that works, or a sentence why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unbackdoor.errors import CheckpointError, InputError, UnknownClassesError
from unbackdoor.models.build import build_body, build_network, is_code
from unbackdoor.models.edits import make_edit
from unbackdoor.models.guess import ENDS, Guess, guess, measure, shapes_of
from unbackdoor.models.limits import check_buffers, check_class_names, check_finite, check_image_shape, check_scaling
from unbackdoor.models.network import Description, Network
from unbackdoor.models.published import known_data_set
from unbackdoor.models.stored import Stored
from unbackdoor.text import clean_text


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user says about a model; None is what the user leaves to the file (see `load_model`)."""

    arch: str | None
    arguments: dict[str, Any] | None
    classes: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    image_shape: tuple[int, int, int] | None

    @classmethod
    def of(
        cls,
        *,
        arch: str | None,
        arguments: dict[str, Any] | None,
        classes: Sequence[str] | None,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
        image_shape: Sequence[int] | None,
    ) -> Asked:
        """Check the user's values by the rules for a file's, and blame the user instead of the file."""
        if (mean is None) != (std is None):
            raise InputError("mean and std belong together; give both or neither")
        scaling: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None)
        try:
            if mean is not None and std is not None:
                scaling = check_scaling(list(mean), list(std), len(mean))
            return cls(
                arch=arch,
                arguments=arguments,
                classes=None if classes is None else check_class_names(list(classes)),
                mean=scaling[0],
                std=scaling[1],
                image_shape=None if image_shape is None else check_image_shape(list(image_shape)),
            )
        except CheckpointError as error:
            raise InputError(str(error).replace("its ", "the ", 1)) from error


def complete(stored: Stored, asked: Asked) -> tuple[Description, tuple[str, ...]]:
    """Return how to build the model, and a note for each thing that had to be assumed.

    Raises:
        CheckpointError: the file names code as its architecture, the architecture cannot be told, or two of
            the things said contradict each other.
    """
    notes = list(stored.notes)
    if asked.arch is None and stored.architecture is not None and is_code(stored.architecture):
        raise CheckpointError(
            f"its architecture is code, {clean_text(stored.architecture, 80)}, and code is never taken"
            " from a file; if you have that code and trust it, name it with --arch (the argument `arch`)"
        )
    architecture, measured = _architecture(stored, asked, notes)
    arguments = _arguments(stored, asked, measured, architecture)
    names = _class_names(stored, asked, measured, architecture)
    shape = _image_shape(stored, asked, measured, len(names), notes)
    mean, std = _scaling(stored, asked, shape[0], len(names), notes)
    description = Description(
        architecture=architecture,
        arguments=arguments,
        class_names=names,
        image_shape=shape,
        mean=mean,
        std=std,
        edits=stored.edits,
    )
    return description, tuple(notes)


def fit(description: Description, state: Mapping[str, Tensor], *, trusted: bool) -> Network:
    """Build the network, give it the weights, and try it on one image.

    Args:
        description: how to build it.
        state: the weights, of any floating-point type.
        trusted: whether the user named the architecture or its arguments, so that a fault in them is the
            user's.

    Raises:
        InputError: `trusted`, and the architecture cannot be built.
        CheckpointError: weights that are missing, left over, of the wrong shape, or not finite; or a network
            that cannot be built, or does not put out one finite number per class.
    """
    check_finite(state)
    try:
        if not is_code(description.architecture):
            # First without memory: a file may describe a network that is much larger than the file.
            with torch.device("meta"):
                body = build_body(description)
            _compare(description, shapes_of(body), state)
            check_buffers(body, sum(tensor.numel() for tensor in state.values()))
        elif description.edits:
            # The user's code may not work without memory, but the edits are the file's.
            body = build_body(replace(description, edits=()))
            with torch.device("meta"):
                for edit in description.edits:
                    make_edit(body, edit)
            _compare(description, shapes_of(body), state)
        network = build_network(description, seed=0)
    except InputError as error:
        if trusted:
            raise
        raise CheckpointError(clean_text(str(error), 300)) from error
    _compare(description, shapes_of(network.body), state)
    network.body.load_state_dict(dict(state))
    network = network.float().eval().requires_grad_(True)
    _try(network)
    return network


def _architecture(stored: Stored, asked: Asked, notes: list[str]) -> tuple[str, Guess | None]:
    """Return the architecture's name, and its measures if it is one of ours."""
    shapes = {name: tuple(tensor.shape) for name, tensor in stored.state.items()}
    named = asked.arch or stored.architecture
    if named is not None:
        return named, measure(named, shapes)
    found = guess(shapes)
    notes.append(f"architecture guessed from the shapes: {found.architecture}, width {found.width}")
    return found.architecture, found


def _arguments(stored: Stored, asked: Asked, measured: Guess | None, architecture: str) -> dict[str, Any]:
    """Return the network's options: the user's, then the file's, then what the shapes tell."""
    # A file's options are for the file's own architecture, and never for the user's code.
    arguments = dict(stored.arguments) if architecture == stored.architecture and not is_code(architecture) else {}
    if measured is not None:
        arguments.setdefault("width", measured.width)
    return arguments | (asked.arguments or {})


def _class_names(stored: Stored, asked: Asked, measured: Guess | None, architecture: str) -> tuple[str, ...]:
    """Return the names of the classes, after the numbers of them that are known are found to agree."""
    counts = {
        "the file's class names": None if stored.class_names is None else len(stored.class_names),
        "the file's number of classes": stored.classes,
        "the weights of the last layer": None if measured is None else measured.classes,
        "the classes given": None if asked.classes is None else len(asked.classes),
    }
    known = {source: count for source, count in counts.items() if count is not None}
    if len(set(known.values())) > 1:
        told = ", ".join(f"{source}: {count}" for source, count in known.items())
        raise CheckpointError(f"wrong number of classes ({told}); name as many classes as the model has outputs")
    if not known and architecture in ENDS:
        raise CheckpointError(
            f"its weights do not fit {architecture}: there are no {' and '.join(ENDS[architecture])} as it"
            " has them; name the right architecture with --arch"
        )
    if not known:
        raise UnknownClassesError("the number of classes is not in the file; give the class names (classes=...)")
    return asked.classes or stored.class_names or tuple(f"class {i}" for i in range(next(iter(known.values()))))


def _image_shape(
    stored: Stored, asked: Asked, measured: Guess | None, classes: int, notes: list[str]
) -> tuple[int, int, int]:
    """Return channels, height and width."""
    known = asked.image_shape or stored.image_shape
    if known is None:
        channels = 3 if measured is None else measured.channels
        facts = known_data_set(classes, channels)
        side = 32 if facts is None else facts.side
        notes.append(f"the file does not tell the size of images: assumed {side} x {side} pixels")
        known = channels, side, side
    if measured is not None and known[0] != measured.channels:
        raise CheckpointError(
            f"its first layer takes images of {measured.channels} channels, not {known[0]}; give the right image shape"
        )
    return known


def _scaling(
    stored: Stored, asked: Asked, channels: int, classes: int, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel."""
    mean, std = (asked.mean, asked.std) if asked.mean is not None else (stored.mean, stored.std)
    if mean is None or std is None:
        facts = known_data_set(classes, channels)
        mean = (0.0,) * channels if facts is None else facts.mean
        std = (1.0,) * channels if facts is None else facts.std
        why = "none" if facts is None else f"that of {facts.title}, since there are {classes} classes"
        notes.append(f"the file does not tell how images were normalised: assumed {why}; mean and std correct it")
    if len(mean) != channels:
        raise CheckpointError(f"mean and std have {len(mean)} values, but its images have {channels} channels")
    return mean, std


def _compare(description: Description, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    """Refuse weights that do not fit the network, in one sentence."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    faults = [
        f"{len(names)} {kind} ({', '.join(clean_text(name, 80) for name in names[:2])}"
        + (", ...)" if len(names) > 2 else ")")
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", wrong))
        if names
    ]
    if faults:
        architecture = clean_text(description.architecture, 80)
        raise CheckpointError(
            f"its weights do not fit {architecture}: {'; '.join(faults)}; name the right architecture with --arch"
        )


@torch.no_grad()
def _try(network: Network) -> None:
    """Refuse a network that cannot classify images of the shape described."""
    shape = network.description.image_shape
    # Grey alone may be what the network takes for 0, and leave out most of its weights.
    noise = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    images = torch.cat([torch.full((1, *shape), value) for value in (0.0, 0.5, 1.0)] + [noise])
    try:
        logits = network(images)
    # The user's or transformers' code over a stranger's weights: whatever it raises, the model does not work.
    except Exception as error:
        raise CheckpointError(
            f"the network cannot classify an image of {shape[0]} x {shape[1]} x {shape[2]}:"
            f" {type(error).__name__} {clean_text(str(error), 120)}; give the right image shape"
        ) from error
    wanted = (len(images), network.classes)
    if not isinstance(logits, Tensor) or tuple(logits.shape) != wanted:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise CheckpointError(
            f"the network puts out {found} for {len(images)} images instead of logits {wanted}; name the classes"
        )
    if not bool(torch.isfinite(logits).all()):
        raise CheckpointError("NaN weights: the network's outputs are NaN or infinite, so nothing can be said about it")
