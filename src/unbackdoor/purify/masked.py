"""Masks on the channels of batch normalisation, which tell what may be pruned."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unbackdoor.data import ImageSet
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.pruning import note_on, sweep_below, switch_off_below
from unbackdoor.training import Batch, Hook, Recipe, Runtime, Sweep
from unbackdoor.training.resume import hash_state

By = Literal["threshold", "number"]

THRESHOLDS = tuple(round(0.05 * number, 2) for number in range(19))
"""That are tried; those of published code."""

MOST, STEPS = 1000, 50
"""Largest number of channels that is tried, and steps to it; those of published code."""


class MaskedNetwork(nn.Module):
    """A frozen network whose batch normalisation's weights are multiplied by masks, its only parameter.

    Args:
        network: frozen, and not copied: its running statistics move in training.
        layers: batch normalisations of the network, by name.

    Attributes:
        mask: one number a channel, of all layers in order.
    """

    def __init__(self, network: nn.Module, layers: dict[str, nn.BatchNorm2d]) -> None:
        super().__init__()
        # In a tuple it is no part of the state, which is written after every epoch: there are many short ones.
        self.frozen = (network.requires_grad_(False),)
        self.layers = tuple(layers.items())
        self.sizes = [layer.num_features for layer in layers.values()]
        self.mask = nn.Parameter(torch.ones(sum(self.sizes), device=next(iter(layers.values())).weight.device))

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Return logits with the masks."""
        return self.scaled(images, self.mask)

    def scaled(
        self, images: Float[Tensor, "b c h w"], weights: Float[Tensor, "n"], biases: Float[Tensor, "n"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Return logits with the channels' weights and biases multiplied by these numbers."""
        changed = {
            f"{name}.weight": layer.weight * part
            for (name, layer), part in zip(self.layers, weights.split_with_sizes(self.sizes))
        }
        if biases is not None:
            for (name, layer), part in zip(self.layers, biases.split_with_sizes(self.sizes)):
                changed[f"{name}.bias"] = layer.bias * part
        logits: Tensor = torch.func.functional_call(self.frozen[0], changed, (images,))
        return logits

    def train(self, mode: bool = True) -> MaskedNetwork:
        """Set the mode of the network too, which is no child."""
        self.frozen[0].train(mode)
        return super().train(mode)


class MaskHook(Hook):
    """Trains masks: a weighted cross-entropy, and masks that stay between 0 and 1.

    Args:
        options: of the method.
        masked: which network's masks; a resumed run must have the same network.
        weight: of the cross-entropy.
    """

    def __init__(self, options: object, masked: MaskedNetwork, weight: float = 1.0) -> None:
        self.options = options
        self.weight = weight
        digest = hashlib.sha256()
        hash_state(digest, masked.frozen[0])
        self.network = digest.hexdigest()

    def identity(self) -> object:
        """Return the options and the frozen network, which the state does not hold."""
        return type(self).__name__, self.options, self.network

    def begin(self, model: nn.Module, recipe: Recipe, runtime: Runtime) -> None:
        """Keep the masked network itself: compiled, it would be compiled anew for each way to call it."""
        super().begin(model, recipe, runtime)
        assert isinstance(model, MaskedNetwork)
        self.masked = model

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Return the weighted cross-entropy with the masks."""
        return self.weight * F.cross_entropy(self.masked(batch.images), batch.targets)

    def update(self, model: nn.Module, batch: Batch, optimizer: torch.optim.Optimizer) -> Float[Tensor, ""]:
        """Do one step and keep the masks between 0 and 1."""
        loss = super().update(model, batch, optimizer)
        with torch.no_grad():
            self.masked.mask.clamp_(0, 1)
        return loss


def mask_recipe(epochs: int, batch_size: int, learning_rate: float, augmentation: str) -> Recipe:
    """Return how masks are trained: SGD with momentum, at a constant rate, on batches' own statistics."""
    return Recipe(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        nesterov=False,
        weight_decay=0.0,
        schedule="constant",
        label_smoothing=0.0,
        ema=0.0,
        augmentation=augmentation,
        low_resolution=0.0,
    )


def check_values(method: str, by: str, values: tuple[float, ...]) -> None:
    """Refuse an unknown way to prune, and values that do not ascend from 0 or more."""
    if by not in get_args(By):
        raise InputError(f"{method}: channels are pruned by threshold or number, found {by!r}")
    ascending = all(one < other for one, other in itertools.pairwise(values))
    if not ascending or not all(0 <= value < math.inf for value in values):
        raise InputError(f"{method}: values must be ascending numbers of 0 or more, found {values}")


def prune_by_mask(
    method: str,
    model: Network,
    layers: Sequence[nn.BatchNorm2d],
    mask: Float[Tensor, "n"],
    by: By,
    values: tuple[float, ...],
    held: ImageSet,
    allowance: float,
    runtime: Runtime,
) -> tuple[Sweep, str]:
    """Set the weights of the channels with the smallest masks to 0, as many as clean samples allow.

    Args:
        method: whom the note is about.
        model: holds the layers; changed in place.
        layers: whose channels the masks belong to.
        mask: one number a channel, of all layers in order.
        by: whether `values` are masks, below which a channel goes, or numbers of channels.
        values: ascending; those of published code if there are none.
        held: clean samples that nothing was learned from.
        allowance: accuracy on these that may be lost, 0 to 1.
        runtime: device and precision.

    Returns:
        The curve with the choice, and a note on how many channels went.
    """
    scores, name = mask.detach(), "mask below which a channel is pruned"
    tried = values or THRESHOLDS
    if by == "number":
        # The place of each channel in the order of masks.
        scores, name = scores.argsort(stable=True).argsort().to(scores.dtype), "number of channels pruned"
        tried = tuple(value for value in values or numbers(len(mask)) if value <= len(mask))
    # There is no mask below 0: the curve begins with the model as it was.
    tried = tuple(sorted({0.0, *tried}))
    sweep = sweep_below(name, model, layers, scores, tried, held, allowance, runtime, bias=False)
    count = switch_off_below(layers, scores, sweep.chosen, bias=False)
    return sweep, note_on(method, count, len(mask))


def numbers(channels: int) -> tuple[float, ...]:
    """Return the numbers of channels that are tried: 0 to 1000 by 20, and by less in a network with fewer channels."""
    most = min(MOST, channels)
    step = max(1, most // STEPS)
    return tuple(float(number) for number in range(0, most + 1, step))
