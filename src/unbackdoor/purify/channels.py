"""The channels of batch normalisation, which pruning methods switch off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.autograd.graph import Node

from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.training import Runtime

SUMS = frozenset({"AddBackward0", "CloneBackward0"})
"""Operations, as PyTorch's record of them names them, that add features up or leave them as they are."""


def norm_layers(model: nn.Module, method: str, statistics: bool = False) -> dict[str, nn.BatchNorm2d]:
    """Return the model's batch normalisations of feature maps that have weights, by name, in order.

    Args:
        model: any.
        method: whom the sentence of an error is about.
        statistics: whether they must have running statistics as well.

    Raises:
        InputError: there are none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and (not statistics or module.running_var is not None)
    }
    if not found:
        kind = "batch normalization with running statistics" if statistics else "batch normalization"
        raise InputError(f"{method} prunes channels of {kind}, and this network has none; choose another method")
    return found


@torch.no_grad()
def switch_off(layer: nn.BatchNorm2d, channels: Bool[Tensor, "c"], bias: bool = True) -> None:
    """Set the weight of these channels to 0, and their bias too unless `bias` is false."""
    layer.weight[channels] = 0
    if bias:
        layer.bias[channels] = 0


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
