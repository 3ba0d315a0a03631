"""How much a channel can change at most when the image changes little, which is known from the weights alone.

Zheng, Tang, Li, Liu, "Data-free Backdoor Removal based on Channel Lipschitzness" (ECCV 2022): the bound by which CLP
prunes, and by which a scanner tells that some channel is unusual.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import Node

from unbackdoor.models import Network
from unbackdoor.training import Runtime

SUMS = frozenset({"AddBackward0", "CloneBackward0"})
"""Operations, as PyTorch's record of them names them, that add features up or leave them as they are."""


@torch.no_grad()
def channel_lipschitz(layer: nn.BatchNorm2d, convolutions: Sequence[nn.Conv2d]) -> Float[Tensor, "c"]:
    """Return the bound L_k of each channel.

    Args:
        layer: has running statistics.
        convolutions: whose outputs add up to what it normalises, one or more.
    """
    assert layer.running_var is not None
    squares = torch.stack([spectral_norms(one.weight).square() for one in convolutions]).sum(0)
    return squares.sqrt() * layer.weight.double().abs() / (layer.running_var.double() + layer.eps).sqrt()


@torch.no_grad()
def spectral_norms(filters: Float[Tensor, "o i h w"]) -> Float[Tensor, "o"]:
    """Return the largest singular value of each filter as a matrix (I, H W), all at once.

    It is the root of the largest eigenvalue of the product of the matrix with itself, of which the smaller of the two
    is 9 x 9 at most for filters of 3 x 3.
    """
    matrices = filters.double().flatten(2)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mT
    norms: Tensor = torch.linalg.eigvalsh(matrices.mT @ matrices)[:, -1].clamp_min(0).sqrt()
    return norms


def convolutions_before(
    model: Network, layers: dict[str, nn.BatchNorm2d], runtime: Runtime
) -> dict[str, list[nn.Conv2d]]:
    """Return the convolutions whose outputs add up to what each of these layers normalises.

    One image is run, and PyTorch's record of the operations is followed back from each layer, through sums only: in a
    residual network several convolutions write into what a layer normalises, and which ones no order of modules tells.

    Args:
        model: on the runtime's device; left in evaluation mode.
        layers: of the model, by name.
        runtime: device.

    Returns:
        Convolutions by the layers' names, without the layers that no convolution comes before.
    """
    made: dict[Node, nn.Conv2d] = {}
    given: list[tuple[str, Node | None]] = []

    def note_output(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and output.grad_fn is not None:
            made[output.grad_fn] = module

    def note_input(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda module, inputs: given.append((name, inputs[0].grad_fn))

    # With a gradient of its own, so that there is a record even where all weights are frozen.
    image = runtime.layout(torch.zeros(1, *model.description.image_shape)).requires_grad_(True)
    with ExitStack() as hooks, torch.enable_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(note_output))
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(note_input(name)))
        model.eval()(image)
    found: dict[str, dict[nn.Conv2d, None]] = {}
    for name, node in given:
        # A layer or a convolution may be run more than once.
        found.setdefault(name, {}).update(dict.fromkeys(_summed(node, made)))
    return {name: list(before) for name, before in found.items() if before}


def _summed(node: Node | None, made: dict[Node, nn.Conv2d]) -> list[nn.Conv2d]:
    """Return the convolutions whose outputs add up to the output of an operation."""
    pending, seen = [node], set()
    found = []
    while pending:
        one = pending.pop()
        if one is None or one in seen:
            continue
        seen.add(one)
        if one in made:
            found.append(made[one])
        elif one.name() in SUMS:
            pending += [before for before, _ in one.next_functions]
    return found
