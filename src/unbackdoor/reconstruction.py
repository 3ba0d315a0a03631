"""How well a decoder reconstructs images, with and without the trigger; Trap-and-Replace reports it beside ACC and ASR.

As in `evaluate`, the test set and the trigger meet the model here, and not in any defence.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unbackdoor.attacks import Criterion, Trigger
from unbackdoor.data import ImageSet
from unbackdoor.evaluate import triggered_images
from unbackdoor.models import Network
from unbackdoor.secure import Decoder
from unbackdoor.training import Runtime

BATCH = 500
DEVIATIONS = 1.96
"""Standard errors on either side of a mean: a 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Mean:
    """A mean over images, with its 95 % interval for large samples.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        count: images.
    """

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Mean squared error of the reconstructed images, pixel units squared.

    Attributes:
        clean: on all test images.
        triggered: on the triggered test images that count for the ASR; None without an attack.
    """

    clean: Mean
    triggered: Mean | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what was measured."""
        return {name: mean for name, mean in asdict(self).items() if mean is not None}


def reconstruction(
    network: Network,
    decoder: Decoder,
    test: ImageSet,
    runtime: Runtime,
    trigger: Trigger | None = None,
    criterion: Criterion | None = None,
) -> Reconstruction:
    """Measure the decoder on test images, and on triggered ones where there is an attack; in full precision.

    Args:
        network: whose stem gives the features.
        decoder: that was trained with it.
        test: see `evaluate`.
        runtime: device.
        trigger: see `evaluate`.
        criterion: see `evaluate`.
    """
    test = test.to(runtime.place)
    clean = mean_of(squared_errors(network, decoder, test.images, runtime))
    if trigger is None or criterion is None:
        return Reconstruction(clean=clean)
    triggered, _ = triggered_images(test, trigger, criterion)
    return Reconstruction(clean=clean, triggered=mean_of(squared_errors(network, decoder, triggered, runtime)))


@torch.no_grad()
def squared_errors(
    network: Network, decoder: Decoder, images: UInt8[Tensor, "n c h w"], runtime: Runtime
) -> Float[Tensor, "n"]:
    """Return the mean squared error of each reconstructed image."""
    stem = runtime.settle(network).split(decoder.at)[0].eval()
    runtime.settle(decoder).eval()
    errors = []
    for part in torch.split(images, BATCH):
        pixels = runtime.layout(part).float() / 255
        errors.append((decoder(stem(pixels)) - pixels).square().mean((1, 2, 3)))
    return torch.cat(errors)


def mean_of(values: Float[Tensor, "n"]) -> Mean:
    """Return the mean of one value or more; of one, the interval is a point."""
    value, count = float(values.double().mean()), len(values)
    error = float(values.double().std()) / math.sqrt(count) if count > 1 else 0.0
    return Mean(value=value, low=value - DEVIATIONS * error, high=value + DEVIATIONS * error, count=count)
