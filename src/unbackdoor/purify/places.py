"""Where in a network a new layer is to come: found by running one image, never by the names of attributes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.models.edits import size_at
from unbackdoor.training import Runtime, logits_of


def default_place(model: Network, runtime: Runtime) -> str:
    """Return the name of the last but one convolution larger than 1 x 1, in the order in which they are run.

    In our networks that is "layer4.1.conv1" (both ResNets), "features.46" (VGG19BN) and "block3.layer.1.conv1"
    (WRN16x1).

    Raises:
        InputError: there are fewer than two.
    """
    large: dict[str, nn.Module] = {
        name: module
        for name, module in model.body.named_modules()
        if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
    }
    run = [name for name, _ in _incoming(model, large, runtime)]
    if len(run) < 2:
        raise InputError(
            f"NPD finds its place by the convolutions larger than 1 x 1, of which this network has {len(run)}; name the"
            " module that the new layer is to come before with --method.before"
        )
    return run[-2]


def incoming_size(model: Network, before: str, point: str, runtime: Runtime) -> tuple[int, int]:
    """Return the size of the features that come into a module."""
    shapes = [shape for _, shape in _incoming(model, {point: model.body.get_submodule(point)}, runtime)]
    if not shapes or not shapes[0]:
        raise InputError(f"NPD: no features come into {before!r} when the network is run; name another module")
    return size_at(model.body, before, shapes[0])


def _incoming(model: Network, modules: dict[str, nn.Module], runtime: Runtime) -> list[tuple[str, tuple[int, ...]]]:
    """Return names and shapes of what comes into these modules, in the order in which they are run on one image."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            first = inputs[0] if inputs else None
            seen.append((name, tuple(first.shape) if isinstance(first, Tensor) else ()))

        return hook

    image = torch.zeros((1, *model.description.image_shape), dtype=torch.uint8)
    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.enter_context(module.register_forward_pre_hook(note(name)))
        logits_of(model, image, runtime)
    return seen
