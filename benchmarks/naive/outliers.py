"""What CLP and BNP share: 21 values of u, each looked at, and channels switched off one at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .common import Samples, accuracy, furthest

VALUES = [10 - number / 2 for number in range(21)]


def prune_outliers(
    model: nn.Module,
    scores: Mapping[nn.BatchNorm2d, Tensor],
    samples: Samples,
    u: float,
    choose: bool,
    allowance: float,
    bias: bool,
) -> None:
    """Switch off the channels above u standard deviations, with the least u that clean accuracy allows."""
    if choose:
        before = copy.deepcopy(model.state_dict())
        accuracies = [accuracy(model, samples.batches(256, shuffle=False))]
        for value in VALUES:
            model.load_state_dict(before)
            switch_off(scores, value, bias)
            accuracies.append(accuracy(model, samples.batches(256, shuffle=False)))
        model.load_state_dict(before)
        position = furthest(accuracies, accuracies[0] - allowance - 1e-6)
        if not position:
            return
        u = VALUES[position - 1]
    switch_off(scores, u, bias)


@torch.no_grad()
def switch_off(scores: Mapping[nn.BatchNorm2d, Tensor], u: float, bias: bool) -> None:
    """Switch off the channels whose score is more than u standard deviations above the mean of their layer."""
    for layer, score in scores.items():
        for channel in range(len(score)):
            if score[channel] > score.mean() + u * score.std():
                layer.weight[channel] = 0.0
                if bias:
                    layer.bias[channel] = 0.0
