"""BNP: pruning by the statistics of batch normalisation.

Zheng, Tang, Li, Liu, "Pre-activation Distributions Expose Backdoor Neurons" (NeurIPS 2022). The running statistics of
batch normalisation are those of the poisoned training data. Where they are far from the statistics of clean samples,
the channel sees the trigger. The distance is the divergence of two normal distributions, clean from running,

    K = log( s_r / s_c ) + ( s_c^2 + (m_c - m_r)^2 ) / ( 2 s_r^2 ) - 1/2,

with mean m and standard deviation s of what comes into the channel. The weights of the channels with K > mean + u std,
over the channels of their layer, are set to 0. The clean statistics are taken in evaluation mode, so that the layers
before work as they do in use. The poisoned data themselves are not needed.

BackdoorBench (a) takes the statistics of a batch of the poisoned training data, which overwrite those of the clean
batch; (b) has log( s_r^2 / s_c^2 ), twice the first term; (c) uses one augmented batch; (d) measures 21 values of u
and prunes at each with the same one. Ours has the formula, and the statistics of all clean samples that repair, as they
are. As in the authors' program biases stay. Variances have the layer's eps added, so that dead channels give numbers.

The authors and BackdoorBench fix u (BackdoorBench: 3, and 4 on Tiny-ImageNet). Here it is the least u, which prunes
most, before accuracy on held-out clean samples falls by more than `allowance`; with `choose` off, `u` is used.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from unbackdoor.data import DefenderData, hold_out
from unbackdoor.errors import InputError
from unbackdoor.models import Network
from unbackdoor.purify.base import Purifier
from unbackdoor.purify.channels import norm_layers
from unbackdoor.purify.pruning import check_allowance, prune_outliers
from unbackdoor.training import History, Runtime
from unbackdoor.training.inference import BATCH


@dataclass(frozen=True, kw_only=True)
class BNP(Purifier):
    """Prune the channels whose running statistics are far from those of clean samples.

    Attributes:
        u: standard deviations above the layer's mean from which a channel goes, 0 or more, if it is not chosen.
        choose: whether u is chosen by held-out clean samples.
        allowance: accuracy on held-out clean samples that may be lost by the choice, 0 to 1.
    """

    u: float = 3.0
    choose: bool = True
    allowance: float = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.u < math.inf:
            raise InputError(f"BNP: u must be a number of 0 or more, found {self.u}")
        check_allowance("BNP", self.allowance)

    def repair(self, model: Network, data: DefenderData, runtime: Runtime, resume: Path | None) -> History:
        """Prune `model` in place (see `Purifier.repair`)."""
        clean = data.need_clean("BNP")
        kept, held = hold_out(clean, runtime.seed) if self.choose else (clean, None)
        layers = list(norm_layers(runtime.settle(model), "BNP", statistics=True).values())
        found = clean_statistics(model, layers, kept.images, runtime)
        # A layer that is not run has nothing to compare.
        run = [layer for layer in layers if layer in found]
        if not run:
            raise InputError("BNP: none of the network's batch normalization is run on images; choose another method")
        scores = [divergence(layer, *found[layer]) for layer in run]
        sweeps, note = prune_outliers("BNP", model, run, scores, self.u, held, self.allowance, runtime, bias=False)
        return History(epochs=0, sweeps=sweeps, notes=(note,))


@torch.no_grad()
def clean_statistics(
    model: nn.Module, layers: list[nn.BatchNorm2d], images: UInt8[Tensor, "n c h w"], runtime: Runtime
) -> dict[nn.BatchNorm2d, tuple[Float[Tensor, "c"], Float[Tensor, "c"]]]:
    """Return mean and variance of what comes into each layer, over all images and positions.

    In float32, since the differences are small, as distances from the running mean, and added up in float64.

    Args:
        model: left in evaluation mode.
        layers: of the model; those that are not run are not in the result.
        images: uint8 pixels.
        runtime: device.
    """
    sums: dict[nn.Module, list[Tensor]] = {}
    counts: dict[nn.Module, int] = {}

    def note(module: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        assert module.running_mean is not None
        distances = inputs[0] - module.running_mean.view(-1, 1, 1)
        # In place: to ask for large memory costs more than to compute in it.
        new = [distances.sum((0, 2, 3)).double(), distances.square_().sum((0, 2, 3)).double()]
        sums[module] = [old + one for old, one in zip(sums[module], new)] if module in sums else new
        counts[module] = counts.get(module, 0) + distances[:, 0].numel()

    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(note))
        model.eval()
        for start in range(0, len(images), BATCH):
            model(runtime.layout(images[start : start + BATCH]).float() / 255)
    found = {}
    for layer in (layer for layer in layers if layer in sums):
        count = counts[layer]
        shift, square = (total / count for total in sums[layer])
        # As running variances are counted.
        variance = (square - shift.square()).clamp_min(0) * count / max(1, count - 1)
        assert layer.running_mean is not None
        found[layer] = (layer.running_mean.double() + shift, variance)
    return found


def divergence(layer: nn.BatchNorm2d, mean: Float[Tensor, "c"], variance: Float[Tensor, "c"]) -> Float[Tensor, "c"]:
    """Return the divergence K of a normal distribution from that of the layer's running statistics.

    Args:
        layer: has running statistics.
        mean: of what comes into each channel.
        variance: of it.
    """
    assert layer.running_mean is not None
    assert layer.running_var is not None
    clean, running = variance.double() + layer.eps, layer.running_var.double() + layer.eps
    shift = mean.double() - layer.running_mean.double()
    return (running / clean).log() / 2 + (clean + shift.square()) / (2 * running) - 0.5
