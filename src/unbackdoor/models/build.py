"""Networks by name, and the one way to build them from a description."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from unbackdoor.errors import CheckpointError, InputError
from unbackdoor.models.edits import make_edit
from unbackdoor.models.huggingface import HuggingFace
from unbackdoor.models.metadata import check_description
from unbackdoor.models.network import Description, Network
from unbackdoor.models.preact_resnet18 import PreActResNet18
from unbackdoor.models.resnet18 import ResNet18
from unbackdoor.models.vgg19_bn import VGG19BN
from unbackdoor.models.wrn16x1 import WRN16x1
from unbackdoor.registry import Registry

NETWORKS: Registry[nn.Module] = Registry("network", PreActResNet18, ResNet18, VGG19BN, WRN16x1)

# Built like the others, but only from the configuration of a folder: nobody could name it without one.
_FROM_FOLDERS: dict[str, type[nn.Module]] = {HuggingFace.__name__: HuggingFace}

# No published network comes near; what is larger is a mistake or an attack on memory.
MAX_WIDTH = 4096


def is_code(architecture: str) -> bool:
    """Return whether `architecture` is `module:function`, which runs the code of whoever named it."""
    return ":" in architecture


def build_network(description: Description, seed: int | None = None) -> Network:
    """Build a network with fresh weights.

    Args:
        description: its architecture is a registered name, or `module:function`, a function
            `(channels, classes, **arguments)` that returns a module from normalised images to logits. The
            function's code runs, so such a name must come from the user, never from a file.
        seed: the weights depend on this alone, and the global random state stays as it was. If None, the
            weights are drawn from the global random state.

    Raises:
        InputError: an unknown architecture or argument, one that cannot be built or edited, or a description with
            which the model could be saved but not loaded.
    """
    try:
        check_description(description)
    except CheckpointError as error:
        raise InputError(str(error).replace("its ", "the ", 1)) from error
    if seed is None:
        return Network(build_body(description), description)
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators as well.
        torch.default_generator.manual_seed(seed)
        return Network(build_body(description), description)


def find_architecture(name: str) -> Callable[..., Any]:
    """Return what builds the architecture of that name; the module of `module:function` is imported.

    Raises:
        InputError: there is none.
    """
    if is_code(name):
        return _user_function(name)
    return _FROM_FOLDERS.get(name) or NETWORKS[name]


def build_body(description: Description) -> nn.Module:
    """Build the architecture alone, with its edits, on the current default device (see `build_network`)."""
    name, arguments = description.architecture, description.arguments
    factory = find_architecture(name)
    channels, classes = description.image_shape[0], len(description.class_names)
    _check_arguments(name, factory, arguments)
    try:
        body = factory(channels, classes, **arguments)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise InputError(
            f"cannot build {name} for {channels} channels and {classes} classes with {given or 'no arguments'}: {error}"
        ) from error
    if not isinstance(body, nn.Module):
        raise InputError(f"{name} returned {type(body).__name__}; it must return a torch.nn.Module")
    for edit in description.edits:
        make_edit(body, edit)
    return body


def _check_arguments(name: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Refuse argument names that the network does not have, and widths out of range."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    known = [key for key in parameters if key not in {"channels", "classes"}]
    for key in arguments:
        if key not in known and not takes_any:
            raise InputError(f"{name} has no argument {key!r} (known: {', '.join(known) or 'none'})")
    width = arguments.get("width", 1)
    if not is_code(name) and (type(width) is not int or not 1 <= width <= MAX_WIDTH):
        raise InputError(f"{name}: width must be a whole number from 1 to {MAX_WIDTH}, found {width!r}")


def _user_function(name: str) -> Callable[..., Any]:
    """Import the function `module:function`."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise InputError(f"{name!r} is no architecture; write module:function, such as my_networks:small_vgg")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(
            f"cannot import {module_name!r} for the architecture {name}: {error};"
            " install it or run where Python can find it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"the module {module_name!r} has no function {function_name!r}; name one that it has")
    return function  # type: ignore[no-any-return]
