"""The channels of batch normalisation, which pruning methods switch off."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from unbackdoor.errors import InputError


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
