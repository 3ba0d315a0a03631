"""How much each neuron's weights change when a model unlearns, by which TSBD tells neurons of a backdoor.

Lin, Liu, Wei, Li, Xiong, "Unveiling and Mitigating Backdoor Vulnerabilities based on Unlearning Weight Changes
and Backdoor Activeness" (NeurIPS 2024). A model that unlearns clean samples, by gradient ascent, changes those neurons
most that a backdoor uses too; they are those that change most when it unlearns triggered ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from unbackdoor.errors import InputError
from unbackdoor.models import Network, last_linear, vector_readers

SHORTCUTS = ("shortcut", "downsample")
"""Parts of names of convolutions beside the blocks of residual networks, whose outputs are no neurons of their own."""


def neuron_layers(model: Network, images: Float[Tensor, "b c h w"]) -> dict[str, nn.Module]:
    """Return the layers whose outputs are the model's neurons, by name, in order.

    These are its convolutions but those of shortcuts. Where most weights are in linear layers, these too, but not the
    last one, whose outputs are the classes, nor beside several convolutions those that read a vector an image, as the
    classifier of VGG does: in a transformer linear layers do at each position what convolutions do elsewhere.

    Args:
        model: any network.
        images: one or more that it takes, on its device.

    Raises:
        InputError: there are none.
    """
    named = {name: one for name, one in model.named_modules() if not any(part in name.lower() for part in SHORTCUTS)}
    convolutions: dict[str, nn.Module] = {name: one for name, one in named.items() if isinstance(one, nn.Conv2d)}
    head, readers = last_linear(model, images), vector_readers(model, images) if len(convolutions) > 1 else []
    found = {
        name: one
        for name, one in named.items()
        if name in convolutions or (isinstance(one, nn.Linear) and one is not head and one not in readers)
    }
    if 2 * _weights(convolutions) >= _weights(found):
        found = convolutions
    if not found:
        raise InputError(
            "neurons are outputs of convolutions or linear layers but the last, and this network has none; choose"
            " another method"
        )
    return found


def _weights(layers: Mapping[str, nn.Module]) -> int:
    return sum(layer.weight.numel() for layer in layers.values() if isinstance(layer.weight, Tensor))


@torch.no_grad()
def weight_changes(before: nn.Module, after: nn.Module, names: Sequence[str]) -> list[Float[Tensor, "neurons weights"]]:
    """Return the absolute change of each weight of each neuron, for each of the named layers.

    Args:
        before: a model.
        after: the same after unlearning.
        names: of layers with weights of which the first dimension counts neurons.
    """
    ends, starts = after.state_dict(), before.state_dict()
    keys = [f"{name}.weight" for name in names]
    return [(ends[key].float() - starts[key].float()).abs().flatten(1) for key in keys]


def neuron_weight_change(changes: Sequence[Float[Tensor, "neurons weights"]]) -> Float[Tensor, "all"]:
    """Return the neuron weight change (NWC) of all neurons: the sum of the absolute changes of its weights.

    It is not divided by their number, so neurons with many weights come first. Source: section 3.2 of the paper.
    """
    return torch.cat([change.double().sum(1) for change in changes])


def reset_masks(
    changes: Sequence[Float[Tensor, "neurons weights"]], neurons: float, weights: float
) -> list[Bool[Tensor, "neurons weights"]]:
    """Return which weights are set to 0: those that changed most in the neurons that changed most.

    Args:
        changes: of each layer's weights.
        neurons: n, the share of all neurons; ties go by order.
        weights: m, the share of the weights of these neurons, by one threshold for all of them.
    """
    total = neuron_weight_change(changes)
    order = total.sort(descending=True, stable=True).indices
    chosen = torch.zeros(len(total), dtype=torch.bool, device=total.device)
    # A hair more: 0.3 * 10 is less than 3 to a computer.
    chosen[order[: int(neurons * len(total) + 1e-9)]] = True
    rows = torch.split(chosen, [len(change) for change in changes])
    pool = torch.cat([change[row].flatten() for change, row in zip(changes, rows)])
    count = int(weights * len(pool) + 1e-9)
    if not count:
        return [torch.zeros_like(change, dtype=torch.bool) for change in changes]
    threshold = pool.kthvalue(len(pool) - count + 1).values
    # What did not change at all is nothing of the backdoor's, however low the threshold.
    return [(change >= threshold) & (change > 0) & row.unsqueeze(1) for change, row in zip(changes, rows)]


@torch.no_grad()
def reset(model: nn.Module, names: Sequence[str], masks: Sequence[Bool[Tensor, "neurons weights"]]) -> None:
    """Set these weights of the named layers to 0; in place."""
    for name, mask in zip(names, masks):
        weight = model.get_parameter(f"{name}.weight")
        weight.masked_fill_(mask.view_as(weight), 0)
