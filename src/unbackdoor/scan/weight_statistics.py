"""Weight statistics: what the weights alone tell, without any image.

Two signs, both from weights that a backdoor has to change:

- The last layer. Fields, Samragh, Javaheripi, Koushanfar, Javidi, "Trojan Signatures in DNN Weights" (ICCV workshops
  2021): the weights that lead to the target class are larger on average than those that lead to others, since the
  backdoor's features must outvote all others. The anomaly of a class is a robust index of its mean weight.
- The channels. Zheng, Tang, Li, Liu (ECCV 2022), see `lipschitz`: a channel that answers to a trigger can change much
  when the image changes little. The statistic is the largest L_k of any channel, in standard deviations of its layer
  above the layer's mean: the least u at which CLP prunes nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from unbackdoor.data import DefenderData
from unbackdoor.errors import InputError
from unbackdoor.models import Network, last_linear
from unbackdoor.scan.base import Finding, Scanner
from unbackdoor.scan.lipschitz import channel_lipschitz, convolutions_before
from unbackdoor.scan.outliers import low_outliers
from unbackdoor.training import Runtime


@dataclass(frozen=True, kw_only=True)
class WeightStatistics(Scanner):
    """Compare the weights of the classes with each other, and the channels' bounds within each layer; needs no data.

    Attributes:
        threshold: on the anomaly index (scaled median absolute deviations above the median).
    """

    threshold: float = 3.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.threshold):
            raise InputError(f"WeightStatistics: the threshold must be a number, found {self.threshold}")

    @torch.no_grad()
    def inspect(self, model: Network, data: DefenderData, runtime: Runtime) -> Finding:
        """Return the verdict (see `Scanner.scan`)."""
        head = last_linear(model, runtime.layout(torch.zeros(1, *model.description.image_shape)))
        if head is None or head.out_features != model.classes:
            raise InputError(
                "WeightStatistics compares the weights of the classes in a last linear layer, and this network has"
                " none; choose another scanner"
            )
        if model.classes < 3:
            raise InputError(f"WeightStatistics compares at least 3 classes with each other, found {model.classes}")
        anomaly = low_outliers(-head.weight.double().mean(1)).float().cpu()
        suspected = [int(c) for c in anomaly.argsort(descending=True) if anomaly[c] > self.threshold]
        bound = largest_deviation(model, runtime)
        largest = f"{float(anomaly.max()):.1f} (threshold {self.threshold:g})"
        return Finding(
            backdoored=bool(suspected),
            suspected=tuple(suspected),
            calibrated=False,
            anomaly=anomaly,
            threshold=self.threshold,
            reason=f"the weights to class {suspected[0]} are unusually large: anomaly index {largest}"
            if suspected
            else f"no evidence in the last layer's weights: the largest anomaly index is {largest}",
            evidence={} if bound is None else {"channel": bound},
        )


def largest_deviation(model: Network, runtime: Runtime) -> float | None:
    """Return by how many standard deviations a channel's bound exceeds its layer's mean, at most over all channels.

    Args:
        model: on the runtime's device, in evaluation mode.
        runtime: device.

    Returns:
        None for a network without batch normalisation after convolutions.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.affine and module.running_var is not None
    }
    deviations = []
    for name, convolutions in convolutions_before(model, layers, runtime).items():
        bounds = channel_lipschitz(layers[name], convolutions)
        if len(bounds) > 1:
            deviations.append(((bounds.max() - bounds.mean()) / bounds.std().clamp_min(1e-12)).item())
    return max(deviations, default=None)
