"""What a network computes, found by running it once: its feature maps at each size, and its last linear layer.

Names of attributes say nothing about networks of users; the order in which modules finish does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.models.modes import evaluating
from unbackdoor.models.network import Network

Size = tuple[int, ...]
"""Height and width of feature maps, or nothing where there are none."""


def feature_map_names(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[str]:
    """Return the names, for `tapped`, of the last module at each spatial size, in the order in which they finish.

    Args:
        model: a network, or any module.
        images: one or more real ones that it takes, on its device.

    Returns:
        Names of modules that put out (B, C, H, W) and whose output differs between positions: pooled maps of 1 x 1,
        repeated or not, are none. A module within a block that leaves its size, such as the block's first
        normalisation, does not count: what the block gets is the end of that size.
    """
    finished = _finished(model, images)
    by_size: dict[Size, str] = {}
    for name, ran in finished.items():
        parts = name.split(".")
        above = [finished.get(".".join(parts[:depth])) for depth in range(1, len(parts))]
        left = any(block and block.given == ran.size != block.size for block in above)
        if ran.size and not ran.flat and not left:
            by_size.pop(ran.size, None)
            by_size[ran.size] = name
    return list(by_size.values())


def last_linear(model: nn.Module, images: Float[Tensor, "b c h w"]) -> nn.Linear | None:
    """Return the linear layer that runs last, or None if the network has none.

    Args:
        model: a network, or any module.
        images: one or more that it takes, on its device.
    """
    layers = [ran.module for ran in _finished(model, images).values() if isinstance(ran.module, nn.Linear)]
    return layers[-1] if layers else None


def vector_readers(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[nn.Linear]:
    """Return the linear layers that read one vector an image, and not one a position, as they finish.

    Args:
        model: a network, or any module.
        images: one or more that it takes, on its device.
    """
    finished = _finished(model, images).values()
    return [ran.module for ran in finished if isinstance(ran.module, nn.Linear) and ran.vector]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ran:
    """A module that ran: whether it got a vector an image, the sizes of the maps that it got and put out, and whether
    the latter are the same at all positions.
    """

    module: nn.Module
    vector: bool
    given: Size
    size: Size
    flat: bool


@torch.no_grad()
def _finished(model: nn.Module, images: Float[Tensor, "b c h w"]) -> dict[str, _Ran]:
    """Return the modules that put out a tensor, in the order in which they finished.

    Of a module that runs more than once the last time counts, as it does for `tapped`.
    """
    root = model.body if isinstance(model, Network) else model
    found: dict[str, _Ran] = {}

    def size_of(value: Any) -> Size:
        maps = isinstance(value, Tensor) and value.ndim == 4 and len(value) == len(images)
        return tuple(value.shape[2:]) if maps else ()

    def noting(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                size = size_of(output)
                # Stretching a map of one pixel rounds.
                flat = bool(size) and torch.allclose(output, output[:, :, :1, :1].expand_as(output), rtol=1e-4)
                found.pop(name, None)
                given = inputs[0] if inputs else None
                vector = isinstance(given, Tensor) and given.ndim == 2
                found[name] = _Ran(module=module, vector=vector, given=size_of(given), size=size, flat=flat)

        return note

    with evaluating(model), ExitStack() as hooks:
        for name, module in root.named_modules():
            if name:
                hooks.enter_context(module.register_forward_hook(noting(name)))
        model(images)
    return found
